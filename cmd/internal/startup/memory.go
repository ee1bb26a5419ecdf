package startup

import (
	"log/slog"
	"os"

	"github.com/heddle-mesh/heddle/internal/memory"
)

// KeepMemory has Go's collector keep the process within limit bytes, or, where that is 0,
// within what its cgroup may have. It returns the limit and the collector's part of it, both
// in bytes, and zeros where there is none or it is not known: that is logged, with the remedy.
func KeepMemory(log *slog.Logger, limit int64, remedy string) (of, heap int64) {
	if limit == 0 {
		var err error
		if limit, err = memory.Limit(os.DirFS("/")); err != nil {
			log.Warn("no limit of memory is kept", "error", err, "remedy", remedy)
			return 0, 0
		}
	}
	if limit == 0 {
		return 0, 0
	}
	return limit, memory.Keep(limit)
}
