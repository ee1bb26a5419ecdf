package agreement

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/agent/cgroup/cgrouptest"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// The kernel tells sockets by the cgroup they were made in. So there are processes in
// four: the tests, which are the agent; one that makes applications' sockets; one that
// makes kubelet's; and the one that `go test` starts, which takes the cgroups away.
const (
	roleAgent   = "agreement-agent"
	roleApp     = "agreement-app"
	roleKubelet = "agreement-kubelet"
)

func TestMain(m *testing.M) {
	switch os.Args[len(os.Args)-1] {
	case roleAgent:
		testenv.Main(m)
	case roleApp, roleKubelet:
		cgrouptest.Exit(cgrouptest.MakeSockets(cgrouptest.FirstFd))
	default:
		cgrouptest.Exit(startRoles())
	}
}

func startRoles() error {
	if os.Geteuid() != 0 {
		return errors.New("this test loads BPF and makes network namespaces: run it as root")
	}
	var ends [2][2]int
	for i := range ends {
		var err error
		if ends[i], err = cgrouptest.Pair(); err != nil {
			return err
		}
	}
	app, err := cgrouptest.Start(roleApp, ends[0][0])
	if err != nil {
		return err
	}
	kubelet, err := cgrouptest.Start(roleKubelet, ends[1][0])
	if err != nil {
		return err
	}
	agent, err := cgrouptest.Start(roleAgent, ends[0][1], ends[1][1])
	if err != nil {
		return err
	}
	errs := []error{agent.Wait()}
	for _, pair := range ends { // the others end when the agent's ends are closed
		errs = append(errs, unix.Close(pair[0]), unix.Close(pair[1]))
	}
	return errors.Join(append(errs, app.Wait(), kubelet.Wait())...)
}

// socketsAtOnce are asked for together: a connection needs one.
const socketsAtOnce = 32

// kubeletCgroup is the folder of the cgroup that kubelet's role is in.
func kubeletCgroup() (string, error) {
	_, own, err := cgroup.Of(os.Getpid())
	if err != nil {
		return "", err
	}
	return strings.Replace(own, roleAgent, roleKubelet, 1), nil
}
