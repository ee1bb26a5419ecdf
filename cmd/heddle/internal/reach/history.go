package reach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// History asks the agents that are meant for what they keep of the hours that ended
// after since, summed up when total is set. One that says more than bound times something is an error.
func (m *Mesh) History(ctx context.Context, since time.Time, total bool, bound int) ([]Answer[[]*meshpb.HistoryResponse], error) {
	targets, err := m.Agents(ctx)
	if err != nil {
		return nil, err
	}
	return Ask(ctx, m.Timeout, targets, func(ctx context.Context, c *admin.Client) (all []*meshpb.HistoryResponse, err error) {
		stream, err := c.Flows.History(ctx, &meshpb.HistoryRequest{SinceNs: since.UnixNano(), Total: total})
		if err != nil {
			return nil, err
		}
		for {
			said, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return all, nil
			case err != nil:
				return nil, err
			case len(all) >= bound:
				return nil, fmt.Errorf("it keeps more than %d summaries; remedy: ask for less, with --since", bound)
			}
			all = append(all, said)
		}
	}), nil
}
