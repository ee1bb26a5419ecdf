// Package trace gives each request that passes a waypoint a span in its trace, says so to the workload, and tells a
// collector of those that are sampled, by OTLP over gRPC. What is said before and after is W3C Trace Context and B3.
//
// A collector that is slow, or away, costs spans, which are counted, and never a request: they wait in a queue of a
// bounded length. An Exporter is safe for concurrent use, a Context is not.
package trace

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// maxQueued is how many spans wait, maxBatch how many go at once, flushEvery how long they
	// wait at most while the collector answers, which it does within exportWithin.
	maxQueued    = 4096
	maxBatch     = 512
	flushEvery   = time.Second
	exportWithin = 10 * time.Second
	// lastWords bounds how long is waited for the collector when all ends.
	lastWords = 2 * time.Second
)

// export is the call of OTLP (opentelemetry-proto, collector/trace/v1). Its request is TracesData by another name,
// octet by octet; its response says at most what was wrong with some of them.
const export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// Config says what is told, and to whom.
type Config struct {
	// Endpoint is the collector's, http://HOST:PORT, or https://HOST:PORT, which is believed by the system's roots.
	Endpoint string
	// Rules say which requests are sampled of those of which the client does not say.
	Rules *sample.Rules
	// Waypoint and Replica are who tells.
	Waypoint         mesh.Key
	Replica, Version string
	// Count counts spans by outcome.
	Count func(outcome string, n int)
	Log   *slog.Logger
}

// The outcomes of spans.
const (
	Sent    = "sent"
	Dropped = "dropped" // the queue was full
	Failed  = "failed"  // the collector did not take them
)

// Exporter has the queue.
type Exporter struct {
	cfg   Config
	conn  *grpc.ClientConn
	names *Names
	full  chan struct{}

	queue struct {
		sync.Mutex
		spans []Span
	}
}

// Span is what is told of one request.
type Span struct {
	Trace        ID
	Parent, Span SpanID
	flow.Request
}

// New returns an Exporter; nil, which tells nothing and changes no field, without an endpoint. It connects to nobody yet.
func New(cfg Config) (*Exporter, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	if err := sample.CheckEndpoint(cfg.Endpoint); err != nil {
		return nil, err
	}
	if cfg.Count == nil || cfg.Log == nil {
		return nil, errors.New("trace: Count and Log are needed")
	}
	secure := insecure.NewCredentials()
	scheme, host, _ := strings.Cut(strings.TrimSuffix(cfg.Endpoint, "/"), "://")
	if strings.EqualFold(scheme, "https") {
		secure = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	conn, err := grpc.NewClient("dns:///"+host, grpc.WithTransportCredentials(secure))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", cfg.Endpoint, err)
	}
	return &Exporter{cfg: cfg, conn: conn, names: NewNames(), full: make(chan struct{}, 1)}, nil
}

// Names are those of the fields that a Context writes.
func (e *Exporter) Names() *Names { return e.names }

// Rules say which requests are sampled.
func (e *Exporter) Rules() *sample.Rules { return e.cfg.Rules }

// Add queues the span of a request that has ended. It waits for nobody.
func (e *Exporter) Add(c *Context, r *flow.Request) {
	q := &e.queue
	q.Lock()
	n := len(q.spans)
	if n >= maxQueued {
		q.Unlock()
		e.cfg.Count(Dropped, 1)
		return
	}
	q.spans = append(q.spans, Span{c.Trace, c.Parent, c.Span, *r})
	q.Unlock()
	if n+1 == maxBatch {
		select {
		case e.full <- struct{}{}:
		default: // it knows already
		}
	}
}

// Run tells until ctx is done, then what is left, and closes. It may be called on a nil Exporter.
func (e *Exporter) Run(ctx context.Context) error {
	if e == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	said := false
	var batch []Span
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-e.full:
		}
		for more := true; more && ctx.Err() == nil; {
			if batch, more = e.take(batch); len(batch) == 0 {
				break
			}
			err := e.tell(ctx, batch)
			if err != nil && ctx.Err() == nil && !said {
				e.cfg.Log.Warn("spans are lost: the collector of traces does not take them", "endpoint", e.cfg.Endpoint, "error", err)
			}
			said = err != nil
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	for more := true; more && last.Err() == nil; {
		if batch, more = e.take(batch); len(batch) > 0 {
			_ = e.tell(last, batch) // it is counted, and nobody reads the log any more
		}
	}
	return e.conn.Close()
}

// take takes the oldest spans from the queue, into the memory of a batch that has gone. More says that there are others.
func (e *Exporter) take(batch []Span) (taken []Span, more bool) {
	q := &e.queue
	q.Lock()
	defer q.Unlock()
	n := min(len(q.spans), maxBatch)
	clear(batch)
	taken = append(batch[:0], q.spans[:n]...)
	rest := copy(q.spans, q.spans[n:])
	clear(q.spans[rest:])
	q.spans = q.spans[:rest]
	return taken, rest > 0
}

// tell sends a batch once: a collector that has to be told twice gets it twice.
func (e *Exporter) tell(ctx context.Context, batch []Span) error {
	ctx, cancel := context.WithTimeout(ctx, exportWithin)
	defer cancel()
	err := e.conn.Invoke(ctx, export, e.message(batch), &emptypb.Empty{})
	if err != nil {
		e.cfg.Count(Failed, len(batch))
		return err
	}
	e.cfg.Count(Sent, len(batch))
	return nil
}

// message is a batch as OTLP has it, with the names of OpenTelemetry's semantic conventions.
func (e *Exporter) message(batch []Span) *tracepb.TracesData {
	spans := make([]*tracepb.Span, len(batch))
	for i := range batch {
		spans[i] = batch[i].proto()
	}
	of := attributes{}
	of.text("service.name", e.cfg.Waypoint.Name)
	of.text("service.namespace", e.cfg.Waypoint.Namespace)
	of.text("service.instance.id", e.cfg.Replica)
	of.text("service.version", e.cfg.Version)
	return &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: of},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "heddle-waypoint", Version: e.cfg.Version}, Spans: spans}},
	}}}
}

// sampledFlag is the bit of the flags of a span that says so (W3C Trace Context, section 3.2.2.5.1).
const sampledFlag = 1

func (s *Span) proto() *tracepb.Span {
	p := &tracepb.Span{
		TraceId: s.Trace[:], SpanId: s.Span[:], Name: s.name(), Kind: tracepb.Span_SPAN_KIND_SERVER, Flags: sampledFlag,
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.Start.Add(s.Duration).UnixNano()),
		Status: &tracepb.Status{},
	}
	if s.Parent != (SpanID{}) {
		p.ParentSpanId = s.Parent[:]
	}
	of := attributes{}
	of.text("http.request.method", s.Method)
	of.text("http.route", s.Path)
	of.number("http.response.status_code", int64(s.Status))
	if s.Source.Addr.IsValid() {
		of.text("client.address", s.Source.Addr.Addr().String())
	}
	of.text("heddle.source.workload", flow.KeyWord(s.Source.Workload))
	if !s.Source.Identity.IsZero() {
		of.text("heddle.source.identity", s.Source.Identity.String())
	}
	of.text("heddle.service", s.Service)
	of.text("heddle.route", s.Route)
	of.text("heddle.backend", s.Backend)
	of.text("heddle.destination.workload", flow.KeyWord(s.Destination.Workload))
	of.text("heddle.verdict", s.Verdict.String())
	of.text("heddle.reason", s.Reason)
	of.number("http.request.resend_count", int64(max(0, s.Tries-1)))
	of.text("heddle.first_error", s.First)
	p.Attributes = of
	if s.Status == 0 || s.Status >= 500 {
		p.Status.Code = tracepb.Status_STATUS_CODE_ERROR
		kind := strconv.Itoa(s.Status) // a workload's own (OpenTelemetry, "Semantic conventions for HTTP spans")
		if s.Own || s.Status == 0 {
			kind, p.Status.Message = s.Reason, s.Reason
		}
		of.text("error.type", kind)
		p.Attributes = of
	}
	return p
}

// name is one of few, whatever clients ask for.
func (s *Span) name() string {
	if s.Path == "" {
		return s.Method
	}
	return s.Method + " " + s.Path
}

type attributes []*commonpb.KeyValue

func (a *attributes) text(key, value string) {
	if value != "" {
		*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}})
	}
}

func (a *attributes) number(key string, value int64) {
	if value != 0 {
		*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}})
	}
}
