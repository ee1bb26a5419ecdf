package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/e2e/wire"
)

// marker is what the unenrolled pods say: the capture must see it, or its
// silence about the others would prove nothing.
const marker = "this-is-plaintext"

func (s *stage) captureFile() string { return filepath.Join(s.scratch, "fabric.pcap") }

// startCapture runs tcpdump on the bridge between the nodes.
func (s *stage) startCapture(ctx context.Context) error {
	if err := os.RemoveAll(s.captureFile()); err != nil {
		return err
	}
	fabric := "/run/netns/heddle-" + s.name + "-fabric"
	s.capture = exec.Command("nsenter", "--net="+fabric, "tcpdump", "-i", "br0", "-s", "0", "-B", "65536", "-U", "--immediate-mode", "-Z", "root", "-w", s.captureFile())
	s.captureSaid = &bytes.Buffer{}
	s.capture.Stderr = s.captureSaid
	if err := s.capture.Start(); err != nil {
		return fmt.Errorf("start tcpdump: %w", err)
	}
	return eventually(ctx, 5*time.Second, "tcpdump listens", func() error {
		info, err := os.Stat(s.captureFile())
		if err == nil && info.Size() == 0 {
			err = errors.New("nothing written yet")
		}
		return err
	})
}

func (s *stage) stopCapture() {
	time.Sleep(300 * time.Millisecond) // what is in tcpdump's buffer
	_ = s.capture.Process.Signal(syscall.SIGINT)
	_ = s.capture.Wait() // tcpdump's status says nothing of the file
	s.capture = nil
}

// judge reads the capture: of the shop's pods, or of the unenrolled ones.
func (s *stage) judge(shop bool) (wire.Findings, error) {
	f, err := os.Open(s.captureFile())
	if err != nil {
		return wire.Findings{}, err
	}
	defer f.Close()
	legacy := func(a netip.Addr) bool {
		return strings.HasSuffix(a.String(), ".90") || strings.HasSuffix(a.String(), "::90")
	}
	pods := netip.MustParsePrefix("10.244.0.0/16")
	pods6 := netip.MustParsePrefix("fd00:244::/32")
	return wire.Read(f, []byte(marker), func(a netip.Addr) bool {
		return (pods.Contains(a) || pods6.Contains(a)) && legacy(a) != shop
	})
}

// wire reads the capture that was running while the customer shopped.
func (s *stage) wire(ctx context.Context) error {
	if _, err := output(s.inPod(ctx, "legacy/printer", "curl", "-sS", "--max-time", "3", "http://10.244.2.90:9100/healthz?"+marker)); err != nil {
		return err
	}
	s.stopCapture()
	legacy, err := s.judge(false)
	if err != nil {
		return err
	}
	if legacy.Markers == 0 || legacy.PlaintextBytes == 0 {
		return fmt.Errorf("the capture does not see plaintext when it is there: %s", legacy)
	}
	held("two pods outside the mesh: the capture sees what they say (%d bytes of plaintext)", legacy.PlaintextBytes)
	return s.nothingPlain("the shop's pods", 1000)
}

// nothingPlain fails unless the shop's traffic on the wire was TLS only.
func (s *stage) nothingPlain(who string, atLeast int) error {
	if !strings.Contains(s.captureSaid.String(), "\n0 packets dropped by kernel") {
		return fmt.Errorf("the capture is not whole: %s", s.captureSaid)
	}
	found, err := s.judge(true)
	if err != nil {
		return err
	}
	if found.PlaintextBytes > 0 || found.Markers > 0 || found.UDPPayloads > 0 {
		return fmt.Errorf("plaintext on the wire: %s: %v", found, found.PlaintextFlows)
	}
	if found.TLSBytes < atLeast {
		return fmt.Errorf("the capture missed the traffic: %s", found)
	}
	held("%s: %d bytes in TLS records, 0 bytes of plaintext", who, found.TLSBytes)
	return nil
}

// kill ends an agent without warning, under traffic, and has it back.
func (s *stage) kill(ctx context.Context) error {
	pid, err := s.agentPID(ctx, "n2")
	if err != nil {
		return err
	}
	if err := s.startCapture(ctx); err != nil {
		return err
	}
	traffic, stop := context.WithCancel(ctx)
	counted := make(chan [2]int, 1)
	go func() { counted <- s.keepShopping(traffic) }()
	defer stop()
	time.Sleep(time.Second)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		stop()
		<-counted
		return fmt.Errorf("kill agent %d: %w", pid, err)
	}
	time.Sleep(2 * time.Second)
	_, directErr := output(s.inPod(ctx, "shop/customer", "curl", "-sS", "--max-time", "2", "http://10.244.1.10/"+marker))
	stop()
	outcome := <-counted
	s.stopCapture()
	if directErr == nil {
		return errors.New("a pod reached the other node without its agent")
	}
	held("SIGKILL to n2's agent under traffic: %d requests answered before, %d refused after; none went around it", outcome[0], outcome[1])
	if err := s.nothingPlain("while it was dead", 1); err != nil {
		return err
	}
	if _, err := s.heddle(ctx, "local", "up", "--name", s.name, "--file", s.mesh, "--create-pods"); err != nil {
		return err
	}
	back := time.Now()
	err = eventually(ctx, 15*time.Second, "the shop is back", func() error { _, err := s.get(ctx); return err })
	if err != nil {
		return err
	}
	held("started again: the shop answers after %.1f s, with nothing cleaned by hand", time.Since(back).Seconds())
	return nil
}

// keepShopping asks the shop until ctx is done; it counts answers and refusals.
func (s *stage) keepShopping(ctx context.Context) (outcome [2]int) {
	for ctx.Err() == nil {
		if _, err := s.get(ctx); err == nil {
			outcome[0]++
		} else if ctx.Err() == nil {
			outcome[1]++
		}
	}
	return outcome
}
