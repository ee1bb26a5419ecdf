// Package sample says of which requests a waypoint tells, where it does not tell of all of
// them: by rules, each of which has a share. It looks at where a request goes, and keeps none.
//
// Rules are safe for concurrent use, and asking them allocates nothing.
package sample

import (
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
)

// MaxRules bounds how many there may be: each is looked at for each request.
const MaxRules = 32

// Rules are tried in their order: the first one that a request is like has its share. A request that
// none is like is left out. Nil Rules want nothing.
type Rules struct{ all []rule }

type rule struct {
	// what ends in "*", or is whole. Of a path it begins with "/".
	what   string
	prefix bool
	share  share
}

// share wants one request of so many, by turns.
type share struct {
	every float64 // of 0 none, of 1 all
	turn  *atomic.Uint64
}

// Parse reads rules such as "/healthz=0,shop/cart=1,shop/*=0.1,*=0.01". What begins with "/" is compared
// with the path of a request, everything else with the service that was dialled, NAMESPACE/NAME; a final * matches
// any ending. A share alone, such as 0.01, is one of all requests. The error names the rule and what may be written.
func Parse(texts []string) (*Rules, error) {
	r := &Rules{}
	for _, text := range texts {
		if strings.ContainsAny(text, "\" \t\r\n") { // a flag's list is read as CSV
			return nil, fmt.Errorf("%q: a rule has no quotes, and no white space", text)
		}
		what, value, ok := strings.Cut(text, "=")
		if !ok {
			what, value = "*", text
		}
		part, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsNaN(part) || part < 0 || part > 1 || what == "" {
			return nil, fmt.Errorf("%q: want NAMESPACE/NAME, a path that begins with /, or *, and a share from 0 to 1, such as shop/cart=0.1", text)
		}
		name, prefix := strings.CutSuffix(what, "*")
		if strings.Contains(name, "*") {
			return nil, fmt.Errorf("%q: a * may only be at the end", text)
		}
		r.all = append(r.all, rule{name, prefix, share{part, new(atomic.Uint64)}})
	}
	if len(r.all) > MaxRules {
		return nil, fmt.Errorf("%d rules, more than %d", len(r.all), MaxRules)
	}
	return r, nil
}

// CheckEndpoint says what is wrong with the URL of a collector of what is sampled.
func CheckEndpoint(text string) error {
	at, err := url.Parse(text)
	if err != nil || at.Hostname() == "" || at.Port() == "" || at.Scheme != "http" && at.Scheme != "https" || at.Path != "" && at.Path != "/" || at.RawQuery != "" || at.User != nil || strings.Contains(text, "$") {
		return fmt.Errorf("%q is no endpoint of OTLP over gRPC: want http://HOST:PORT, or https://HOST:PORT, such as http://collector.telemetry:4317", text)
	}
	return nil
}

// Want says whether a request is one of those that are told of. Service is the service and port that
// was dialled, such as shop/cart:80, "" when it is not known; path is without its query.
func (r *Rules) Want(service, path string) bool {
	if r == nil {
		return false
	}
	if at := strings.LastIndexByte(service, ':'); at >= 0 {
		service = service[:at]
	}
	for i := range r.all {
		if r.all[i].like(service, path) {
			return r.all[i].share.take()
		}
	}
	return false
}

func (r *rule) like(service, path string) bool {
	text := service
	if strings.HasPrefix(r.what, "/") {
		text = path
	}
	if r.prefix {
		return strings.HasPrefix(text, r.what)
	}
	return text == r.what
}

// take is true once for each whole number that turns times share goes past: exactly a share, evenly.
func (s *share) take() bool {
	switch s.every {
	case 0, 1:
		return s.every == 1
	}
	n := float64(s.turn.Add(1))
	return math.Floor(n*s.every) > math.Floor((n-1)*s.every)
}
