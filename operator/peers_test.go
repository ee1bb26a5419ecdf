package operator

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// TestUnaskedReplicaIsWarnedOf: one that does not answer may just have ended, and is not
// worth a line; that this replica cannot even ask is.
func TestUnaskedReplicaIsWarnedOf(t *testing.T) {
	why := errors.New("why")
	for says, a := range map[string]answered[int]{"": {}, "level=DEBUG": {err: why}, "level=WARN": {err: why, unasked: true}} {
		var out bytes.Buffer
		a.logFailure(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if got := out.String(); (got == "") != (says == "") || !strings.Contains(got, says) || says != "" && !strings.Contains(got, "error=why") {
			t.Errorf("%+v: want %q, got %q", a, says, got)
		}
	}
}
