package badinput

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// attempt is one try to get through a pod's tunnel port, from a pod that is not
// in the mesh.
type attempt struct {
	certificate tls.Certificate
	// authority and forwarded are what the CONNECT says; method is CONNECT
	// when empty.
	authority, forwarded, method string
}

// tunnel tries the server's port 15008 with certificates and requests that are
// wrong. The last attempt is right in everything: it shows that the others
// failed for what is wrong with them.
func (w *world) tunnel(t *testing.T) {
	own := meshAuthority(t)
	foreign := foreignAuthority(t, own.root)
	client := spiffe(domain, "client")
	good := own.issue(t, []string{client})
	target := server + ":7000"
	for _, test := range []struct {
		name string
		attempt
		status int // 0: not even a handshake
		reason string
		detail []string // what the flow says besides
	}{
		{"expired", attempt{certificate: own.issue(t, []string{client}, valid(-2*time.Hour, -time.Minute))}, 0, "CertificateExpired", []string{client, "expired"}},
		{"not yet valid", attempt{certificate: own.issue(t, []string{client}, valid(time.Hour, 2*time.Hour))}, 0, "CertificateExpired", []string{client, "not yet valid"}},
		{"foreign authority", attempt{certificate: foreign.issue(t, []string{client})}, 0, "CertificateUntrusted", []string{client}},
		{"foreign trust domain", attempt{certificate: foreign.issue(t, []string{spiffe("other.test", "client")})}, 0, "CertificateUntrusted", []string{"other.test"}},
		{"foreign trust domain, own authority", attempt{certificate: own.issue(t, []string{spiffe("other.test", "client")})}, 0, "CertificateUntrusted", []string{"other.test"}},
		{"two URI names", attempt{certificate: own.issue(t, []string{client, spiffe(domain, "server")})}, 0, "CertificateInvalid", []string{"more than one URI SAN"}},
		{"no URI name", attempt{certificate: own.issue(t, nil)}, 0, "CertificateInvalid", []string{"no URI SAN"}},
		{"a web address", attempt{certificate: own.issue(t, []string{"https://client.shop"})}, 0, "CertificateInvalid", []string{"scheme"}},
		{"an authority's", attempt{certificate: own.issue(t, []string{client}, isAuthority)}, 0, "CertificateInvalid", []string{"CA"}},
		{"none", attempt{}, 0, "CertificateInvalid", []string{"didn't provide a certificate"}},
		{"another pod's address", attempt{good, busy + ":7000", "", ""}, 400, "AuthorityMismatch", []string{busy + ":7000", "shop/server"}},
		{"loopback", attempt{good, "127.0.0.1:7000", "", ""}, 400, "AuthorityMismatch", []string{"127.0.0.1:7000", "shop/server"}},
		{"a name", attempt{good, "server.shop:7000", "", ""}, 400, "BadRequest", []string{"authority"}},
		{"not CONNECT", attempt{good, target, "", http.MethodGet}, 400, "BadRequest", nil},
		{"forwarded names another pod", attempt{good, target, `for="10.244.1.10:4711"`, ""}, 400, "ForwardedUntrusted", []string{"10.244.1.10", "10.244.1.90"}},
		{"forwarded names the pod itself", attempt{good, target, `for="10.244.2.10:4711"`, ""}, 400, "ForwardedUntrusted", []string{"10.244.2.10"}},
		{"forwarded is garbage", attempt{good, target, `for="[`, ""}, 400, "BadRequest", []string{"forwarded"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.authority == "" {
				test.authority = target
			}
			w.counts(t, "n2", denials("inbound", test.reason), func() {
				status, err := w.try(test.attempt)
				if status != test.status || (test.status == 0) == (err == nil) {
					t.Errorf("got status %d and %v, want %d", status, err, test.status)
				}
			})
			w.flowSays(t, test.reason, test.detail)
			w.served(t)
		})
	}
	t.Run("nothing wrong", func(t *testing.T) {
		if status, err := w.try(attempt{good, target, `for="10.244.1.90:4711"`, ""}); status != http.StatusOK {
			t.Errorf("status %d, %v: the attempts above show nothing", status, err)
		}
	})
	t.Run("plaintext", func(t *testing.T) {
		w.counts(t, "n2", denials("inbound", "BadRequest"), func() { w.plaintext(t) })
		w.served(t)
	})
}

// try makes one attempt and returns the status; an error when there is none.
func (w *world) try(a attempt) (status int, err error) {
	raw, err := w.Dial("plain/talker", server+":15008", 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true} // the client's identity is what is tried
	if a.certificate.Certificate != nil {
		// Presented whatever the server asks for.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &a.certificate, nil }
	}
	secured := tls.Client(raw, cfg)
	if err := secured.Handshake(); err != nil {
		return 0, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return secured, nil }}
	defer transport.CloseIdleConnections()
	return connectStatus(transport, a)
}

func connectStatus(conn http.RoundTripper, a attempt) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	method := a.method
	if method == "" {
		method = http.MethodConnect
	}
	body, end := io.Pipe()
	defer end.Close()
	req := (&http.Request{Method: method, Host: a.authority, URL: &url.URL{Scheme: "https", Host: a.authority}, Header: http.Header{}, Body: body}).WithContext(ctx)
	if a.forwarded != "" {
		req.Header.Set("Forwarded", a.forwarded)
	}
	resp, err := conn.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// plaintext speaks HTTP without TLS to the tunnel's port.
func (w *world) plaintext(t *testing.T) {
	t.Helper()
	c, err := w.Dial("plain/talker", server+":15008", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "CONNECT %s:7000 HTTP/1.1\r\nHost: %s:7000\r\n\r\n", server, server)
	answer, err := io.ReadAll(c)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("plaintext on the tunnel's port is neither answered nor refused")
	}
	if strings.Contains(string(answer), "200") {
		t.Errorf("plaintext on the tunnel's port got %q", answer)
	}
}

// flowSays wants a refusal in the flows that names the talker's address and the
// server, and has the words.
func (w *world) flowSays(t *testing.T, reason string, words []string) {
	t.Helper()
	w.flowHas(t, reason, append(words, `"shop/server"`, "10.244.1.90")...)
}

// flowHas wants a refusal in the flows that has the words.
func (w *world) flowHas(t *testing.T, reason string, words ...string) {
	t.Helper()
	var out string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var err error
		out, err = w.Heddle("flows", "--name", meshName, "--reason", reason, "--verdict", "deny", "--last", "3", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if hasAll(line, words) {
				return
			}
		}
	}
	t.Errorf("no flow of reason %s with %q:\n%s", reason, words, out)
}
