package admin

import (
	"bytes"
	"context"
	"runtime/pprof"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// maxProfile bounds how long one caller may look: there is one profile at a time
// in a process, and it costs a few percent.
const maxProfile = time.Minute

// Profile implements meshpb.AdminServer.
func (s *Server) Profile(ctx context.Context, req *meshpb.ProfileRequest) (*meshpb.ProfileResponse, error) {
	duration := time.Duration(req.GetDurationNs())
	if duration <= 0 || duration > maxProfile {
		return nil, status.Errorf(codes.InvalidArgument, "%v is no duration from 1ns to %v", duration, maxProfile)
	}
	var cpu bytes.Buffer
	if err := pprof.StartCPUProfile(&cpu); err != nil {
		return nil, status.Error(codes.FailedPrecondition, "another profile is being taken: wait until it is done")
	}
	over := time.NewTimer(duration)
	defer over.Stop()
	select {
	case <-over.C:
	case <-ctx.Done():
	}
	pprof.StopCPUProfile()
	return &meshpb.ProfileResponse{Cpu: cpu.Bytes()}, ctx.Err()
}
