package admin

import (
	"bytes"
	"compress/gzip"
	"io"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

func TestProfile(t *testing.T) {
	_, c := serve(t, filepath.Join(t.TempDir(), "s"), agent{})
	for _, wrong := range []time.Duration{0, -1, maxProfile + 1} {
		_, err := c.Admin.Profile(t.Context(), &meshpb.ProfileRequest{DurationNs: int64(wrong)})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: got %v", wrong, err)
		}
	}
	// A second look at the same time is refused, whichever comes second.
	type answer struct {
		response *meshpb.ProfileResponse
		err      error
	}
	answers := make(chan answer, 2)
	for range 2 {
		go func() {
			r, err := c.Admin.Profile(t.Context(), &meshpb.ProfileRequest{DurationNs: int64(300 * time.Millisecond)})
			answers <- answer{r, err}
		}()
	}
	refused, taken := <-answers, <-answers
	if status.Code(refused.err) != codes.FailedPrecondition || taken.err != nil {
		t.Fatalf("got %v and %v, want a refusal and a profile", refused.err, taken.err)
	}
	text, err := gzip.NewReader(bytes.NewReader(taken.response.GetCpu()))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(text); err != nil || !bytes.Contains(data, []byte("nanoseconds")) {
		t.Errorf("that is no CPU profile: %d bytes, %v", len(data), err)
	}
}
