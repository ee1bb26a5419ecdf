package machine

import (
	"os"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestProcess(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "what this process uses is counted", func() bool {
		for until := time.Now().Add(20 * time.Millisecond); time.Now().Before(until); {
		}
		used, err := CPU(os.Getpid())
		return err == nil && used >= before+2*clockTick && used < time.Hour
	})
	if size, err := Resident(os.Getpid()); err != nil || size < 1<<20 || size > 1<<32 {
		t.Errorf("this process has %d bytes, %v", size, err)
	}
	if _, err := Resident(1 << 30); err == nil {
		t.Error("there is no such process")
	}
}

func TestStolen(t *testing.T) {
	before, err := Stolen()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Stolen(); err != nil || again < before || before > time.Since(time.Unix(0, 0)) {
		t.Errorf("%v was stolen, and %v after that, %v", before, again, err)
	}
}

func TestFacts(t *testing.T) {
	for _, f := range Facts("../../..") {
		if f.Value == "" || f.Value == "unknown" && f.Name != "Heddle" {
			t.Errorf("%s is %q", f.Name, f.Value)
		}
	}
	if Load() == "unknown" || CongestionControl() == "unknown" {
		t.Error("the kernel says neither its load nor its congestion control")
	}
	if Said(".", "x", "/no/such/program") != "unknown" {
		t.Error("a program that is not there has said something")
	}
}
