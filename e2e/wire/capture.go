package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startPatience is how long tcpdump has until it captures, and flushTime how long
// what it has seen may stay in its buffer.
const (
	startPatience = 10 * time.Second
	flushTime     = time.Second
)

// Capture is a tcpdump that runs, with a folder of its own. It is not safe for
// concurrent use; several may run at once.
type Capture struct {
	tcpdump *exec.Cmd
	ended   chan struct{} // closed when tcpdump has ended
	folder  string
	said    bytes.Buffer // by tcpdump, with what it lost; to be read when it has ended
}

// Start captures what crosses a link of a network namespace, whose path is given,
// and returns when packets are seen. Stop or Discard ends it.
func Start(netNS, link string) (*Capture, error) {
	folder, err := os.MkdirTemp("", "wire-")
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	c := &Capture{ended: make(chan struct{}), folder: folder}
	c.tcpdump = exec.Command("nsenter", "--net="+netNS, "tcpdump", "-i", link, "-s", "0", "-B", "65536", "-U", "--immediate-mode", "-Z", "root", "-w", c.file())
	c.tcpdump.Stderr = &c.said
	if err := c.tcpdump.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start tcpdump: %w", err), os.RemoveAll(folder))
	}
	go func() {
		defer close(c.ended)
		_ = c.tcpdump.Wait() // its status says nothing of the file
	}()
	if !c.begins() {
		c.Discard()
		return nil, fmt.Errorf("tcpdump on %s of %s does not begin: %s", link, netNS, strings.TrimSpace(c.said.String()))
	}
	return c, nil
}

// begins waits until the file's header is written.
func (c *Capture) begins() bool {
	limit := time.After(startPatience)
	for {
		if info, err := os.Stat(c.file()); err == nil && info.Size() > 0 {
			return true
		}
		select {
		case <-c.ended:
			return false
		case <-limit:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Capture) file() string { return filepath.Join(c.folder, "wire.pcap") }

// Discard ends the capture without looking at it. After Stop it does nothing.
func (c *Capture) Discard() {
	_ = c.tcpdump.Process.Kill() // gone already
	<-c.ended
	_ = os.RemoveAll(c.folder) // in the system's folder for what is temporary
}

// Stop ends the capture and judges it, as Read does. A capture that has lost
// packets shows nothing, and is an error.
func (c *Capture) Stop(marker string, judged func(netip.Addr) bool) (Findings, error) {
	defer c.Discard()
	time.Sleep(flushTime)
	if err := c.tcpdump.Process.Signal(syscall.SIGINT); err != nil {
		return Findings{}, fmt.Errorf("stop tcpdump: %w", err)
	}
	<-c.ended
	if !strings.Contains(c.said.String(), "\n0 packets dropped by kernel") {
		return Findings{}, fmt.Errorf("the capture is not whole, so it shows nothing: %s", strings.TrimSpace(c.said.String()))
	}
	file, err := os.Open(c.file())
	if err != nil {
		return Findings{}, fmt.Errorf("read capture: %w", err)
	}
	defer file.Close() // only read
	return Read(file, []byte(marker), judged)
}
