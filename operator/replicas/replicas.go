// Package replicas asks the other replicas of an operator, on the agents' port, where each
// knows the others by the operator's identity. It decides nothing of what they answer.
//
// Replicas are safe for concurrent use, and start nothing that goes on.
package replicas

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// askFor bounds how long a replica is waited for.
const askFor = 2 * time.Second

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 16 << 20

// Replicas are the others.
type Replicas struct {
	addresses   func() []string
	credentials func() credentials.TransportCredentials
	log         *slog.Logger

	conns struct {
		sync.Mutex
		byAddress map[string]*grpc.ClientConn
	}
}

// New returns those that are at some addresses now, each a host:port, to whom this replica
// proves itself by credentials.
func New(addresses func() []string, credentials func() credentials.TransportCredentials, log *slog.Logger) *Replicas {
	r := &Replicas{addresses: addresses, credentials: credentials, log: log}
	r.conns.byAddress = map[string]*grpc.ClientConn{}
	return r
}

// Answer is what one replica has answered, or why it has not.
type Answer[T any] struct {
	Address string
	Answer  T
	Err     error
	unasked bool // for Err: it is this replica's
}

// logFailure says why there is no answer.
func (a *Answer[T]) logFailure(logger *slog.Logger) {
	switch {
	case a.unasked:
		logger.Warn("other replica cannot be asked", "address", a.Address, "error", a.Err)
	case status.Code(a.Err) == codes.ResourceExhausted:
		logger.Warn("other replica's answer is too large to be taken: what its agents say is not known here", "address", a.Address, "most_bytes", maxAnswer, "error", a.Err)
	case a.Err != nil: // it may just have ended
		logger.Debug("other replica does not answer", "address", a.Address, "error", a.Err)
	}
}

// Ask asks all at once, waits for each, and logs who does not answer.
func Ask[T any](ctx context.Context, r *Replicas, ask func(ctx context.Context, address string, c meshpb.OperatorAdminClient) (T, error)) []Answer[T] {
	addresses := r.addresses()
	all := make([]Answer[T], len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			a := &all[i]
			a.Address = address
			conn, err := r.conn(address)
			if err != nil {
				a.Err, a.unasked = err, true
				return
			}
			ctx, cancel := context.WithTimeout(ctx, askFor)
			defer cancel()
			a.Answer, a.Err = ask(ctx, address, meshpb.NewOperatorAdminClient(conn))
		})
	}
	wg.Wait()
	for i := range all {
		all[i].logFailure(r.log)
	}
	r.closeBut(addresses)
	return all
}

// AskGates returns a function, for one goroutine, that asks what the others' agents say of
// gates. What has not changed since it was asked before is not sent again.
func (r *Replicas) AskGates() func(context.Context) []*meshpb.NodeGates {
	before := map[string]*meshpb.GatesResponse{} // by address
	return func(ctx context.Context) (all []*meshpb.NodeGates) {
		now := map[string]*meshpb.GatesResponse{}
		for _, a := range Ask(ctx, r, func(ctx context.Context, address string, c meshpb.OperatorAdminClient) (*meshpb.GatesResponse, error) {
			return c.Gates(ctx, &meshpb.GatesRequest{Digest: before[address].GetDigest()})
		}) {
			if a.Err != nil {
				continue // what it said is known by now, and not that it is so still
			}
			if was := before[a.Address]; was != nil && string(was.GetDigest()) == string(a.Answer.GetDigest()) {
				a.Answer = was
			}
			now[a.Address] = a.Answer
			all = append(all, a.Answer.GetNodes()...)
		}
		before = now
		return all
	}
}

func (r *Replicas) conn(address string) (*grpc.ClientConn, error) {
	r.conns.Lock()
	defer r.conns.Unlock()
	if conn := r.conns.byAddress[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient(address, grpc.WithNoProxy(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithTransportCredentials(r.credentials()))
	if err != nil {
		return nil, err
	}
	r.conns.byAddress[address] = conn
	return conn, nil
}

// Close ends the connections. Who asks later makes new ones.
func (r *Replicas) Close() { r.closeBut(nil) }

func (r *Replicas) closeBut(keep []string) {
	r.conns.Lock()
	defer r.conns.Unlock()
	for address, conn := range r.conns.byAddress {
		if !slices.Contains(keep, address) {
			// Nothing is lost with a connection that fails to close.
			_ = conn.Close()
			delete(r.conns.byAddress, address)
		}
	}
}
