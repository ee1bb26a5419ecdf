package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	byName = `kind: TLSRoute
metadata: {namespace: shop, name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart, port: 80}]
  hostnames: ["*.example.com"]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
`
	byPort = `kind: TCPRoute
metadata: {namespace: shop, name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart, port: 80}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
`
)

// TestFolderOfConnections: TLSRoutes and TCPRoutes of a folder are gone by, come and go with it, and one that cannot be served is
// named by its file and line while what was good goes on.
func TestFolderOfConnections(t *testing.T) {
	folder, commands := documented(t)
	file := filepath.Join(folder, "shop.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rest, _, ok := strings.Cut(string(text), "kind: HTTPRoute\n")
	if !ok {
		t.Fatal("the folder has no HTTPRoute")
	}
	write := func(route string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(rest+route), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(byName)
	app := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS.ServerName) }))
	defer app.Close()
	at, metrics := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	args := commands[1]
	for i := range args {
		args[i] = strings.NewReplacer("127.0.0.1:8080", at, "127.0.0.1:15020", metrics, "127.0.0.1:8081", app.Listener.Addr().String()).Replace(args[i])
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := &testenv.Log{}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, args, noEnvironment, log, log) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	get := func(name string) string {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true}}}
		resp, err := client.Get("https://" + at)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return string(body)
	}
	until := func(name, want string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, name+" is answered by "+want, func() bool { return strings.Contains(get(name), want) })
	}
	until("cart.example.com", "cart.example.com")
	until("cart.example.org", "unrecognized name")
	write(strings.Replace(byName, "*.example.com", "*", 1))
	testenv.Eventually(t, 30*time.Second, "what cannot be served is named", func() bool {
		return strings.Contains(log.String(), "TLSRoute shop/cart") && strings.Contains(log.String(), "shop.yaml:") && strings.Contains(log.String(), "spec.hostnames[0]")
	})
	until("cart.example.com", "cart.example.com")
	write(byPort)
	until("cart.example.org", "cart.example.org")
}
