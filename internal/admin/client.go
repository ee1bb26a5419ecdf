package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// maxResponse bounds one answer: a node's live connections are the largest.
const maxResponse = 64 << 20

// ErrUnreachable is matched by errors that mean that nobody serves the socket,
// or that this user may not connect to it.
var ErrUnreachable = errors.New("admin socket does not answer")

// ErrForbidden is matched by errors that mean that whoever asks may not, which says
// nothing of whether the program runs.
var ErrForbidden = errors.New("may not be asked")

// Client talks to one admin socket.
type Client struct {
	conn *grpc.ClientConn
	// Flows and Admin are the agent's services.
	Flows meshpb.FlowsClient
	Admin meshpb.AdminClient
}

// Dial returns a Client of the socket at path. It connects once, to say at once
// what is wrong: the error matches ErrUnreachable and says what to do.
func Dial(ctx context.Context, path string) (*Client, error) {
	var dialer net.Dialer
	probe, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrUnreachable, path, whyNot(err))
	}
	_ = probe.Close() // it only asked whether somebody listens
	return Over(path, func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) })
}

// Over returns a Client that connects by dial: to a socket of another machine,
// through something that proves who is at both ends. Name is for errors. Nothing
// is dialled before the first call, and dial is called again after a connection
// was lost.
func Over(name string, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	// "passthrough" leaves the name alone, which may hold what a URL may not.
	conn, err := grpc.NewClient("passthrough:///"+name,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel, or whoever dials, names both ends
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithAuthority("localhost"),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return &Client{conn: conn, Flows: meshpb.NewFlowsClient(conn), Admin: meshpb.NewAdminClient(conn)}, nil
}

func whyNot(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "no such socket: is the program running?"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens: the program that made the socket has ended; start it again"
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "only root may connect: run it with sudo"
	default:
		return err.Error()
	}
}

// Conn is the connection, for services other than the agent's.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }

// Explain turns the status of a call into an error for a person: the message
// alone, and ErrUnreachable where the other side is gone.
func Explain(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%w: %s", ErrUnreachable, s.Message())
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: no answer in time", ErrUnreachable)
	default:
		return errors.New(s.Message())
	}
}

// Connect connects, in place of the first call, and returns when it has, or why it
// could not.
func (c *Client) Connect(ctx context.Context) error {
	c.conn.Connect()
	for {
		switch state := c.conn.GetState(); state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return fmt.Errorf("%w: it is no admin socket that answers", ErrUnreachable)
		default:
			if !c.conn.WaitForStateChange(ctx, state) {
				return fmt.Errorf("%w: no answer in time: %w", ErrUnreachable, ctx.Err())
			}
		}
	}
}
