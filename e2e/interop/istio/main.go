// Command istio is one end of an HBONE tunnel with Istio's own Go code for it
// (istio.io/istio/pkg/hbone, built on net/http): what the engines meet in
// TestToIstio and TestFromIstio. It is a module of its own, so that Heddle does
// not depend on Istio.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"

	"istio.io/istio/pkg/hbone"
)

func main() {
	role := flag.String("role", "", "server: end tunnels that are opened to --listen; client: carry what is dialled to --listen")
	listen := flag.String("listen", "", "host:port")
	endpoint := flag.String("endpoint", "", "client: host:port of the tunnel's other end")
	authority := flag.String("authority", "", "client: where the tunnel leads")
	certificate := flag.String("certificate", "", "PEM file of our chain")
	key := flag.String("key", "", "PEM file of our key")
	root := flag.String("root", "", "PEM file of the roots")
	flag.Parse()
	if err := run(*role, *listen, *endpoint, *authority, *certificate, *key, *root); err != nil {
		fmt.Fprintln(os.Stderr, "istio:", err)
		os.Exit(1)
	}
}

func run(role, listen, endpoint, authority, certificate, key, root string) error {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(root)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no certificate in %s", root)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ClientCAs: roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "istio: listening") // a connection made to find out would count
	switch role {
	case "server":
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
		s := hbone.NewServer()
		s.TLSConfig = cfg
		s.Protocols = new(http.Protocols)
		s.Protocols.SetHTTP2(true)
		return s.ServeTLS(l, "", "")
	case "client":
		cfg.InsecureSkipVerify = true // SVIDs name no host; the chain is checked below
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		}
		return carry(l, hbone.NewDialer(hbone.Config{ProxyAddress: endpoint, TLS: cfg}), authority)
	}
	return fmt.Errorf("--role %q is neither server nor client", role)
}

// carry takes every connection to authority. The dialer's connections are
// pipes: they know no half-close.
func carry(l net.Listener, dialer hbone.Dialer, authority string) error {
	for {
		local, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer local.Close()
			remote, err := dialer.Dial("tcp", authority)
			if err != nil {
				fmt.Fprintln(os.Stderr, "istio: dial through the tunnel:", err)
				return
			}
			var both sync.WaitGroup
			both.Go(func() { io.Copy(remote, local); remote.Close() })
			both.Go(func() { io.Copy(local, remote); local.Close() })
			both.Wait()
		}()
	}
}
