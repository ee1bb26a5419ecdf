package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/netutil"
)

// RefreshHint is how often whoever federates with this mesh should ask for its bundle.
const RefreshHint = time.Minute

// Overlap is how long a root is in the bundle at least before anything is signed by it, while
// the bundle is served: whoever asks as often as the hint says, and fails once, has it by then.
const Overlap = 3 * RefreshHint

// Bounds of an Endpoint: nobody has to prove anything to it.
const (
	maxConnections = 64
	maxAnswer      = 10 * time.Second
)

// EndpointConfig says what an Endpoint serves. All fields but JWT are needed.
type EndpointConfig struct {
	TrustDomain spiffeid.TrustDomain
	// Roots returns those that are trusted now.
	Roots func() []*x509.Certificate
	// JWT returns what verifies JWT-SVIDs now; nil is nothing.
	JWT func() *jwtbundle.Bundle
	// Certificate is presented to whoever asks: the operator's SVID (profile https_spiffe),
	// or one of the web (https_web).
	Certificate func() (*tls.Certificate, error)
	Logger      *slog.Logger
}

// Endpoint is the mesh's SPIFFE bundle endpoint: GET of any path answers with the bundle
// (SPIFFE Federation, section 5.1).
type Endpoint struct {
	cfg EndpointConfig

	now struct {
		sync.Mutex
		bundle   *spiffebundle.Bundle
		document []byte
	}
}

// NewEndpoint checks the configuration.
func NewEndpoint(cfg EndpointConfig) (*Endpoint, error) {
	if cfg.TrustDomain.IsZero() || cfg.Roots == nil || cfg.Certificate == nil || cfg.Logger == nil {
		return nil, errors.New("new bundle endpoint: TrustDomain, Roots, Certificate and Logger are needed")
	}
	return &Endpoint{cfg: cfg}, nil
}

// document is the bundle of now. Its spiffe_sequence is the moment since when this replica
// serves what is in it, in milliseconds: it grows with each change, whichever replica is
// asked and however often they restart, as long as their clocks agree.
func (e *Endpoint) document() ([]byte, error) {
	bundle := spiffebundle.FromX509Authorities(e.cfg.TrustDomain, e.cfg.Roots())
	if e.cfg.JWT != nil {
		bundle.SetJWTAuthorities(e.cfg.JWT().JWTAuthorities())
	}
	bundle.SetRefreshHint(RefreshHint)
	e.now.Lock()
	defer e.now.Unlock()
	if last := e.now.bundle; last != nil {
		n, _ := last.SequenceNumber()
		bundle.SetSequenceNumber(n)
		if last.Equal(bundle) {
			return e.now.document, nil
		}
		bundle.SetSequenceNumber(max(n+1, uint64(time.Now().UnixMilli())))
	} else {
		bundle.SetSequenceNumber(uint64(time.Now().UnixMilli()))
	}
	document, err := bundle.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode the bundle: %w", err)
	}
	e.now.bundle, e.now.document = bundle, document
	return document, nil
}

// ServeHTTP implements http.Handler.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "a bundle is to be had by GET", http.StatusMethodNotAllowed)
		return
	}
	document, err := e.document()
	if err != nil {
		e.cfg.Logger.Error("the bundle is not served", "error", err)
		http.Error(w, "the bundle cannot be had", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(document)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(document) // whoever asked may be gone
	}
}

// Serve answers on a listener, which it closes, until ctx is done.
func (e *Endpoint) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: e, ReadHeaderTimeout: maxAnswer, ReadTimeout: maxAnswer, WriteTimeout: maxAnswer, IdleTimeout: maxAnswer, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(e.cfg.Logger.Handler(), slog.LevelDebug)}
	secured := tls.NewListener(netutil.LimitListener(listener, maxConnections), &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.cfg.Certificate() },
	})
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(secured); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the bundle: %w", err)
	}
	return nil
}

// reread is how long a certificate of files is taken without looking at them.
const reread = 10 * time.Second

// Files returns what presents a certificate of two PEM files, which are read again now and
// then: the last good one stays in use while they cannot be. The error is about how they
// are now.
func Files(certificate, key string, log *slog.Logger) (func() (*tls.Certificate, error), error) {
	first, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the bundle endpoint: %w", err)
	}
	var now struct {
		sync.Mutex
		certificate *tls.Certificate
		read        time.Time
	}
	now.certificate, now.read = &first, time.Now()
	return func() (*tls.Certificate, error) {
		now.Lock()
		defer now.Unlock()
		if time.Since(now.read) < reread {
			return now.certificate, nil
		}
		now.read = time.Now()
		next, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			log.Error("certificate of the bundle endpoint is not read: going on with the last good one", "error", err)
			return now.certificate, nil
		}
		now.certificate = &next
		return now.certificate, nil
	}, nil
}
