// Package rootsocket makes unix sockets that only root of the same machine
// reaches. The file's mode says so, and so does the kernel, which is asked who
// is at the other end (SO_PEERCRED, unix(7)). It knows nothing of what is said
// over them.
//
// A Listener is safe for concurrent use.
package rootsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is what fits into sockaddr_un beside the final zero (unix(7)).
const maxPath = 107

// Listener accepts root's connections, *net.UnixConn each. Close removes the
// file while it is the Listener's own.
type Listener struct {
	*net.UnixListener
	path string
	file os.FileInfo
	log  *slog.Logger
}

// Listen puts a socket at path, whose folder must exist, ready-made: it is never
// seen with another mode. A socket that a program left when it died is replaced;
// one that is served is an error.
func Listen(path string, log *slog.Logger) (*Listener, error) {
	if err := notServed(path); err != nil {
		return nil, err
	}
	return place(path, log)
}

// Replace is Listen that takes the place of a socket that is served: whoever
// connects reaches one of the two at every moment, and who is connected stays
// with the old one.
func Replace(path string, log *slog.Logger) (*Listener, error) {
	if _, err := isSocket(path); err != nil {
		return nil, err
	}
	return place(path, log)
}

// leftAfter is when a socket beside the path is no longer one that is being put in
// place.
const leftAfter = time.Minute

// sweep removes what programs that were killed while they put their sockets in place
// have left beside path.
func sweep(path string) error {
	beside, err := filepath.Glob(path + ".[0-9]*")
	if err != nil {
		return fmt.Errorf("look for sockets beside %s: %w", path, err)
	}
	for _, left := range beside {
		info, err := os.Lstat(left)
		if err != nil || info.Mode().Type() != fs.ModeSocket || time.Since(info.ModTime()) < leftAfter || notServed(left) != nil {
			continue
		}
		if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a socket that a killed program has left: %w", err)
		}
	}
	return nil
}

func place(path string, log *slog.Logger) (*Listener, error) {
	if err := sweep(path); err != nil {
		log.Warn("a socket stays", "error", err)
	}
	fresh := path + "." + strconv.Itoa(os.Getpid())
	if len(fresh) > maxPath {
		return nil, fmt.Errorf("socket %s: the path is longer than %d bytes: choose a shorter one", path, maxPath)
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	s := &Listener{UnixListener: l, path: path, log: log}
	err = errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path))
	if err == nil {
		s.file, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("put socket in place: %w", err), l.Close(), os.Remove(fresh))
	}
	return s, nil
}

// notServed returns an error when a program answers at path, or when something
// that is no socket is there.
func notServed(path string) error {
	if found, err := isSocket(path); !found || err != nil {
		return err
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("socket %s: another program serves it: stop that one first", path), conn.Close())
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("look at socket: %w", err)
}

// isSocket reports whether there is a socket at path, and an error when there is
// something else.
func isSocket(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("socket %s: a %s is there that is no socket: remove it", path, kind(info))
	}
	return true, nil
}

func kind(info os.FileInfo) string {
	if info.IsDir() {
		return "folder"
	}
	return "file"
}

// Close ends listening, and removes the file unless a successor has put its own
// there.
func (l *Listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		_ = os.Remove(l.path) // a stale one is replaced at the next start
	}
	return l.UnixListener.Close()
}

// Accept implements net.Listener: it closes the connections of processes that
// are neither root's nor of this process's own user, which is root except in
// tests.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if _, err = Peer(conn); err == nil {
			return conn, nil
		}
		l.log.Warn("connection refused", "socket", l.path, "error", err)
		_ = conn.Close() // nothing was written that could get lost
	}
}

// Dial connects to a socket, and checks that root serves it.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect to %s: not a unix socket but %T", path, conn), conn.Close())
	}
	if _, err := Peer(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Peer returns the process at the other end, and an error unless it is root's or
// this process's own user's. Its pid is 0 when it is in another pid namespace.
func Peer(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("find out who is at the other end: %w", err)
	}
	if cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
		return 0, fmt.Errorf("process %d of user %d is not root's", cred.Pid, cred.Uid)
	}
	return int(cred.Pid), nil
}
