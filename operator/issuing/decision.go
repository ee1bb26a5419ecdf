package issuing

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
)

// reason is why a request was granted or not: a metric label and a word in the
// audit log.
type reason string

const (
	reasonIssued          reason = "Issued"
	reasonTokenUnknown    reason = "TokenUnknown"
	reasonTokenUsed       reason = "TokenUsed"
	reasonTokenExpired    reason = "TokenExpired"
	reasonTokenRevoked    reason = "TokenRevoked"
	reasonTokenWrongNode  reason = "TokenWrongNode"
	reasonAccountRefused  reason = "AccountRefused"
	reasonAccountUnknown  reason = "AccountNotReviewed"
	reasonNodeUnknown     reason = "NodeUnknown"
	reasonUnauthenticated reason = "Unauthenticated"
	reasonNotOnNode       reason = "NotOnNode"
	reasonNotSynced       reason = "NotSynced"
	reasonRevoked         reason = "IdentityRevoked"
	reasonBadRequest      reason = "BadRequest"
	reasonBadCSR          reason = "BadCSR"
	reasonRate            reason = "RateLimited"
	reasonNoJWTs          reason = "NoJWTs"
	reasonNoKey           reason = "NoKey"
	reasonInternal        reason = "Internal"
)

func tokenReason(err error) (reason, bool) {
	for _, t := range []struct {
		err    error
		reason reason
	}{
		{jointoken.ErrUnknown, reasonTokenUnknown},
		{jointoken.ErrUsed, reasonTokenUsed},
		{jointoken.ErrExpired, reasonTokenExpired},
		{jointoken.ErrRevoked, reasonTokenRevoked},
		{jointoken.ErrWrongNode, reasonTokenWrongNode},
	} {
		if errors.Is(err, t.err) {
			return t.reason, true
		}
	}
	return "", false
}

// refusal is an error that the caller may see, with its reason.
type refusal struct {
	reason reason
	code   codes.Code
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(why reason, code codes.Code, format string, args ...any) error {
	return &refusal{why, code, fmt.Sprintf(format, args...)}
}

// decision collects what the audit log says of one request.
type decision struct {
	method, node, remote, token string
	id                          spiffeid.ID
	began                       time.Time
}

// conclude counts and logs a decision and turns its error into the status that
// the caller sees. Errors that are no refusals stay here: the caller is told
// that there was one. Of what was issued the log has issued.
func (s *Server) conclude(ctx context.Context, d *decision, err error, issued ...slog.Attr) error {
	var r *refusal
	why, level := reasonIssued, slog.LevelInfo
	switch {
	case err == nil:
	case errors.As(err, &r):
		why, level = r.reason, slog.LevelWarn
	case errors.Is(err, identity.ErrBadCSR):
		r = &refusal{reasonBadCSR, codes.InvalidArgument, err.Error()}
		why, level = r.reason, slog.LevelWarn
	default:
		r = &refusal{reasonInternal, codes.Internal, "operator cannot sign now; its log says why"}
		why, level = r.reason, slog.LevelError
	}
	s.metrics.requests.WithLabelValues(d.method, string(why)).Inc()
	s.metrics.seconds.WithLabelValues(d.method).Observe(time.Since(d.began).Seconds())
	attrs := []slog.Attr{slog.String("method", d.method), slog.String("reason", string(why)),
		slog.String("node", d.node), slog.String("identity", d.id.String()), slog.String("remote", d.remote)}
	if d.token != "" {
		attrs = append(attrs, slog.String("token", d.token))
	}
	if err != nil {
		s.cfg.Logger.LogAttrs(ctx, level, "refuse SVID", append(attrs, slog.Any("error", err))...)
		return status.Error(r.code, r.text)
	}
	s.cfg.Logger.LogAttrs(ctx, level, "issue SVID", append(attrs, issued...)...)
	return nil
}

// issued is what the log has of a certificate; nothing where there is none.
func issued(chain []*x509.Certificate) []slog.Attr {
	if len(chain) == 0 {
		return nil
	}
	return []slog.Attr{slog.String("serial", chain[0].SerialNumber.Text(16)), slog.Time("not_after", chain[0].NotAfter)}
}

// metrics are:
//
//	heddle_issuing_requests_total{method,reason}    join, sign and jwt, by outcome
//	heddle_issuing_duration_seconds{method}         how long they took
//	heddle_authority_earliest_expiry_seconds        Unix time of the first root's NotAfter
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics() metrics {
	return metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_issuing_requests_total", Help: "Requests for certificates and JWT-SVIDs, by reason of the outcome.",
		}, []string{"method", "reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "heddle_issuing_duration_seconds", Help: "How long requests for certificates and JWT-SVIDs took.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .05, .25, 1, 5},
		}, []string{"method"}),
	}
}

func (m metrics) register(r prometheus.Registerer, roots func() []*x509.Certificate) error {
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "heddle_authority_earliest_expiry_seconds", Help: "Unix time at which the first of the roots expires.",
	}, func() float64 {
		var earliest float64
		for _, root := range roots() {
			if end := float64(root.NotAfter.Unix()); earliest == 0 || end < earliest {
				earliest = end
			}
		}
		return earliest
	})
	for _, c := range []prometheus.Collector{m.requests, m.seconds, expiry} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics of issuing: %w", err)
		}
	}
	return nil
}
