package show

import (
	"fmt"
	"io"
	"time"

	"github.com/heddle-mesh/heddle/internal/local"
)

// Upgraded prints how the upgrades of a mesh's nodes went.
func Upgraded(out io.Writer, color bool, all []local.Upgraded) error {
	t := NewTable(out, color, "NODE", "FROM", "TO", "PID", "CONNECTIONS", "TUNNELS", "LOST", "DRAINED", "TOOK", "LONGEST PAUSE")
	for _, u := range all {
		lost := Text(fmt.Sprint(u.Failed))
		if u.Failed > 0 {
			lost = In(fmt.Sprint(u.Failed), Red)
		}
		t.Add(Text(u.Node), Text(u.From), Text(u.To), Text(fmt.Sprintf("%d → %d", u.FromPID, u.PID)),
			Text(fmt.Sprint(u.Connections)), Text(fmt.Sprint(u.Tunnels)), lost, Text(fmt.Sprint(u.Left)),
			Text(u.Took.Round(time.Millisecond).String()), Text(u.Pause.Round(100*time.Microsecond).String()))
	}
	return t.Flush()
}
