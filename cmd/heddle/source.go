package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/flow"
)

// source is one that flows are asked of. It is not safe for concurrent use.
type source struct {
	reach.Target
	log  io.Writer
	told bool // of what is not believed
}

// believed says whether a flow may be shown as what it is, and sees to that it says whose it
// is. Agents are on every node, and see everything. A waypoint of a cluster is in its
// people's own namespace, who can make it say anything: it is believed of requests to
// services of that namespace, and bears the name by which it was found.
func (s *source) believed(f *meshpb.Flow) bool {
	if s.Waypoint == "" {
		return true
	}
	namespace, _, _ := strings.Cut(s.Waypoint, "/")
	about := cmp.Or(f.GetService(), f.GetDestination().GetWorkload()) // neither, where nothing was found for it
	of, _, named := strings.Cut(about, "/")
	if f.GetDirection() != flow.DirectionRequest.String() || f.GetRequest() == nil || about != "" && (!named || of != namespace) {
		if !s.told {
			s.told = true
			fmt.Fprintf(s.log, "heddle: the %s speaks of what is not its own, %s of %q; that is not shown\n", s, f.GetDirection(), about)
		}
		return false
	}
	f.Waypoint = s.Waypoint
	_, f.Node, _ = strings.Cut(s.Node, "/")
	return true
}
