package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// review serves, and answers the API server on :8443, by TLS with a certificate and its
// key, PEM in base64: it refuses what is named "refused", and nothing else.
func review(ctx context.Context, certificate, key string) error {
	return serveBeside(ctx, certificate, key, judge)
}

// serveBeside serves, and answers calls on :8443, by TLS. Each call has a connection of
// its own, as none that was open before says what comes in now; HTTP/2 would share one.
func serveBeside(ctx context.Context, certificate, key string, answer http.HandlerFunc) error {
	var pems [2][]byte
	for i, text := range []string{certificate, key} {
		var err error
		if pems[i], err = base64.StdEncoding.DecodeString(text); err != nil {
			return err
		}
	}
	pair, err := tls.X509KeyPair(pems[0], pems[1])
	if err != nil {
		return err
	}
	web := &http.Server{
		Addr: ":8443", ReadHeaderTimeout: patience, Handler: answer,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	web.SetKeepAlivesEnabled(false)
	served := make(chan error, 1)
	go func() { served <- web.ListenAndServeTLS("", "") }()
	err = serve(ctx)
	_ = web.Close() // whoever waits has waited in vain
	return errors.Join(err, ended(<-served))
}

// ended is nil for a server that was told to end.
func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func judge(w http.ResponseWriter, r *http.Request) {
	var asked admissionv1.AdmissionReview
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&asked); err != nil || asked.Request == nil {
		http.Error(w, "want an AdmissionReview", http.StatusBadRequest)
		return
	}
	asked.Response = &admissionv1.AdmissionResponse{UID: asked.Request.UID, Allowed: asked.Request.Name != "refused"}
	if !asked.Response.Allowed {
		asked.Response.Result = &metav1.Status{Message: "the guard says no"}
	}
	asked.Request = nil
	_ = json.NewEncoder(w).Encode(asked) // the API server has gone, or asks again
}
