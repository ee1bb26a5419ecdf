// Command probe is the program in the pods of the clusters' own tests: a server
// that says who called it, and the client that calls. It is static, so that it is
// an image by itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: probe serve | get URL... | lookup NAME... | mkdir DIR... | ls DIR... | wait
serve   answer on :8080 with "POD NODE CLIENT-ADDRESS", and print each request
get     fetch each URL over a connection of its own and print what it answers
lookup  print the addresses of each name
mkdir   make each folder
ls      print what is in each folder
wait    do nothing until told to end`

// patience bounds every single exchange.
const patience = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		err = serve(ctx)
	case "get":
		err = each(args, get)
	case "lookup":
		err = each(args, lookup)
	case "mkdir":
		err = each(args, func(dir string) (string, error) { return dir, os.Mkdir(dir, 0o755) })
	case "ls":
		err = each(args, list)
	case "wait":
		<-ctx.Done()
	default:
		err = errors.New(usage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context) error {
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	server := http.Server{Addr: ":8080", ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			client = r.RemoteAddr
		}
		fmt.Printf("request for %s from %s\n", r.URL.Path, client)
		fmt.Fprintln(w, pod, os.Getenv("NODE"), client)
	})}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// each does all, also when one fails.
func each(args []string, do func(string) (string, error)) error {
	var failures []error
	for _, arg := range args {
		answer, err := do(arg)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		fmt.Println(answer)
	}
	return errors.Join(failures...)
}

func get(url string) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close() // read to its end
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %s: %s", url, response.Status)
	}
	return strings.TrimSpace(string(body)), err
}

func lookup(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	return strings.Join(addresses, " "), err
}

func list(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " "), err
}
