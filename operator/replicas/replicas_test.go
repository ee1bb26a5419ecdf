package replicas

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestUnaskedReplicaIsWarnedOf: one that does not answer may just have ended, and is not
// worth a line; that this replica cannot even ask, or not take the answer, is.
func TestUnaskedReplicaIsWarnedOf(t *testing.T) {
	why := errors.New("why")
	large := status.Error(codes.ResourceExhausted, "why")
	for _, c := range []struct {
		a    Answer[int]
		says string
	}{{Answer[int]{}, ""}, {Answer[int]{Err: why}, "level=DEBUG"}, {Answer[int]{Err: why, unasked: true}, "level=WARN"}, {Answer[int]{Err: large}, "level=WARN"}} {
		var out bytes.Buffer
		c.a.logFailure(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if got := out.String(); (got == "") != (c.says == "") || !strings.Contains(got, c.says) || c.says != "" && !strings.Contains(got, "why") {
			t.Errorf("%+v: want %q, got %q", c.a, c.says, got)
		}
	}
}
