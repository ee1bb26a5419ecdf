package measure

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const wrkSaid = `Running 2s test @ http://10.244.2.10:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   706.42us  293.79us   7.42ms   88.05%
  71653 requests in 2.01s, 16.88MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:  35646.21
Transfer/sec:      8.40MB
`

func TestParseWrk(t *testing.T) {
	r, err := parseWrk(wrkSaid)
	if err != nil || r != (wrkResult{71653, 35646.21, 15}) {
		t.Errorf("got %+v, %v", r, err)
	}
	r, err = parseWrk("  0 requests in 2.01s, 0.00B read\nRequests/sec:      0.00\n")
	if err != nil || r.errors != 1 {
		t.Errorf("no requests at all are an error: got %+v, %v", r, err)
	}
	if _, err := parseWrk("unable to connect to 10.244.2.10:8080 Connection refused\n"); err == nil {
		t.Error("a failure was understood as a result")
	}
}
