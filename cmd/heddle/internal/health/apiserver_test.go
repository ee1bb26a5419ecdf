package health

import (
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

func TestAPIServer(t *testing.T) {
	for says, a := range map[string]*meshpb.OperatorAPIServer{
		"":                                      nil,
		"answers in 5ms":                        {TookNs: int64(5 * time.Millisecond)},
		"takes 2.5s to answer":                  {TookNs: int64(2500 * time.Millisecond)},
		"has not answered for 1m0s: it is gone": {SilentSinceNs: time.Now().Add(-time.Minute).UnixNano(), Error: "it is gone"},
	} {
		r := New()
		r.apiServer("operator", a)
		if says == "" {
			if len(r.Findings) != 0 {
				t.Errorf("of a folder's operator it says %+v", r.Findings)
			}
			continue
		}
		if good := strings.HasPrefix(says, "answers"); len(r.Findings) != 1 || r.OK != good || !strings.HasPrefix(r.Findings[0].Detail, says) || !good && r.Findings[0].Remedy == "" {
			t.Errorf("want %q, it says %+v", says, r.Findings)
		}
	}
}
