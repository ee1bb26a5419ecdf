// Package kubelet finds the cgroup in which the node's kubelet makes the sockets of
// its probes, and keeps up with it: by this cgroup, and by nothing that a pod could
// imitate, the gate tells probes from other plaintext.
//
// A process is kubelet by its name, and only when nothing that runs in a pod could
// be it: it is root's, in the node's network namespace, and in no pod's cgroup,
// which a pod's process cannot leave.
package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/overdue"
)

// Auto has the process looked for; None is for nodes without kubelet. Anything else
// is the path of its cgroup v2 folder.
const (
	Auto = "auto"
	None = "none"
)

// rootCgroup is the id of the root cgroup (include/linux/cgroup-defs.h): everything
// that nobody has put elsewhere is in it, so that it tells nothing.
const rootCgroup = 1

// ErrNotFound is matched when no process is kubelet.
var ErrNotFound = errors.New("no kubelet was found among the node's processes")

// Place is where kubelet's sockets are made.
type Place struct {
	// PID is kubelet's; 0 when the cgroup was given.
	PID int
	// Folder is the cgroup's, and ID its id, as the gate compares it.
	Folder string
	ID     uint64
	// Others counts the processes that share the cgroup: what they send to ports
	// that probes declare passes as well.
	Others int
}

// search is one look through the processes. One of them may not let its command line
// be read for as long as something has its memory locked, and so hold the search.
type search struct {
	proc string       // where proc(5) is mounted
	skip map[int]bool // processes that hold others
	at   atomic.Int64 // the process that is being looked at
}

// find looks for kubelet.
func (s *search) find() (Place, error) {
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		return Place{}, fmt.Errorf("list processes: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !s.named(pid) {
			continue
		}
		place, err := inspect(pid)
		if err == nil {
			return place, nil
		}
		errs = append(errs, err)
	}
	return Place{}, fmt.Errorf("%w: %w", ErrNotFound, errors.Join(errs...))
}

// maxCommand bounds what is read of a command line, in bytes.
const maxCommand = 4096

// named reports whether a process calls itself kubelet, or is one of the programs
// that have it inside. One that is gone does not.
func (s *search) named(pid int) bool {
	if s.skip[pid] {
		return false
	}
	s.at.Store(int64(pid))
	f, err := os.Open(filepath.Join(s.proc, strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	defer f.Close()
	command := make([]byte, maxCommand)
	n, _ := f.Read(command) // of a kernel thread: nothing
	return isKubelet(bytes.Split(command[:n], []byte{0}))
}

// isKubelet knows kubelet, programs of many names such as hyperkube, MicroK8s'
// kubelite, and k3s.
func isKubelet(args [][]byte) bool {
	program := filepath.Base(string(args[0]))
	first := ""
	if len(args) > 1 {
		first = string(args[1])
	}
	switch program {
	case "kubelet", "kubelite", "k3s server", "k3s agent":
		return true
	case "k3s":
		return first == "server" || first == "agent"
	}
	return first == "kubelet"
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// inspect says where a process is that calls itself kubelet, or why it is none.
func inspect(pid int) (Place, error) {
	info, err := os.Stat(filepath.Dir(procFile(pid, "x")))
	if err != nil {
		return Place{}, fmt.Errorf("process %d: %w", pid, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 {
		return Place{}, fmt.Errorf("process %d is not root's", pid)
	}
	own, err1 := os.Readlink("/proc/self/ns/net")
	its, err2 := os.Readlink(procFile(pid, "ns/net"))
	if err := errors.Join(err1, err2); err != nil || own != its {
		return Place{}, errors.Join(fmt.Errorf("process %d is not in the node's network", pid), err)
	}
	text, folder, err := cgroup.Of(pid)
	if err != nil {
		return Place{}, err
	}
	if uid, err := cgroup.PodUID(text); err == nil {
		return Place{}, fmt.Errorf("process %d is in the pod %s", pid, uid)
	}
	place, err := at(folder)
	place.PID, place.Others = pid, max(place.Others-1, 0)
	return place, err
}

// at looks at a cgroup's folder.
func at(folder string) (Place, error) {
	place := Place{Folder: folder}
	var err error
	if place.ID, err = bpf.CgroupID(folder); err != nil {
		return place, err
	}
	members, err := cgroup.Members(folder)
	if err != nil {
		return place, err
	}
	place.Others = len(members)
	if place.ID <= rootCgroup {
		return place, errors.New("kubelet is in the root cgroup, with everything else that nobody has put elsewhere, and cannot be told from it; remedy: run it in a cgroup of its own, as a unit of systemd or with its setting kubeletCgroups")
	}
	return place, nil
}

// Watch knows where kubelet is. It is safe for concurrent use.
type Watch struct {
	setting string
	log     *slog.Logger
	proc    string // where proc(5) is mounted
	mu      sync.Mutex
	place   Place
	err     error
	// stuck are processes that a search waits for; it is over when they are read.
	stuck map[int]bool
}

const (
	// every is how often it is looked whether kubelet is where it was.
	every = time.Second
	// lookWithin is how long one search may take, many times what it needs.
	lookWithin = 2 * time.Second
	// maxStuck bounds the processes that are passed over, with a goroutine each.
	maxStuck = 16
)

// NewWatch looks for kubelet, as the setting says: Auto, None or a folder. That no
// process is kubelet is no error: Run goes on looking. nil is for None, and "". A
// process that cannot be looked at is passed over after two seconds, until it can be.
func NewWatch(setting string, log *slog.Logger) (*Watch, error) {
	return newWatch(setting, "/proc", log)
}

func newWatch(setting, proc string, log *slog.Logger) (*Watch, error) {
	if setting == None || setting == "" {
		return nil, nil
	}
	w := &Watch{setting: setting, log: log, proc: proc, stuck: map[int]bool{}}
	w.look()
	if _, err := w.State(); err != nil && setting != Auto {
		return nil, fmt.Errorf("find kubelet's cgroup: %w; remedy: give --kubelet-cgroup its cgroup v2 folder, or %s", err, Auto)
	}
	return w, nil
}

// look finds kubelet anew, and reports whether its cgroup is another one now. While
// there is none, the last one counts: ids of cgroups are not given again.
func (w *Watch) look() (changed bool) {
	place, err := w.find()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if w.err == nil || w.err.Error() != err.Error() {
			w.log.Warn("kubelet's cgroup is not known: under STRICT its http, tcp and grpc probes are refused", "error", err, "remedy", "set --kubelet-cgroup")
		}
		w.err = err
		return false
	}
	changed = place.ID != w.place.ID
	if changed {
		w.log.Info("probes are what comes from kubelet's cgroup", "cgroup", place.Folder, "pid", place.PID, "others", place.Others)
	}
	w.place, w.err = place, nil
	return changed
}

func (w *Watch) find() (Place, error) {
	if w.setting != Auto {
		return at(w.setting)
	}
	for {
		w.mu.Lock()
		s, last := &search{proc: w.proc, skip: maps.Clone(w.stuck)}, w.place.PID
		w.mu.Unlock()
		if len(s.skip) >= maxStuck {
			return Place{}, fmt.Errorf("%w: %d processes cannot be looked at, as their memory is locked", ErrNotFound, len(s.skip))
		}
		if f := w.run(s, last); f != nil {
			return f.place, f.err
		}
	}
}

// found is what a search comes to.
type found struct {
	place Place
	err   error
}

// run searches, first where kubelet was last. It returns nil when a process holds
// the search, which is passed over from then on, until that lets go.
func (w *Watch) run(s *search, last int) *found {
	over := make(chan *found, 1)
	go func() {
		if last != 0 && s.named(last) {
			if place, err := inspect(last); err == nil {
				over <- &found{place: place}
				return
			}
		}
		place, err := s.find()
		over <- &found{place, err}
	}()
	select {
	case f := <-over:
		return f
	case <-time.After(lookWithin):
	}
	pid := int(s.at.Load())
	w.log.Warn("a process cannot be looked at, and is not taken for kubelet: its memory is locked", "process", overdue.Process(pid))
	w.setStuck(pid, true)
	go func() { <-over; w.setStuck(pid, false) }()
	return nil
}

func (w *Watch) setStuck(pid int, stuck bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if stuck {
		w.stuck[pid] = true
	} else {
		delete(w.stuck, pid)
	}
}

// ID is the id of kubelet's cgroup; 0 when it was never found.
func (w *Watch) ID() uint64 {
	if w == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.place.ID
}

// State returns where kubelet is, and why that is not known now.
func (w *Watch) State() (Place, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.place, w.err
}

// Run keeps up with kubelet until ctx is done, and tells set of each new cgroup.
// What set fails at is tried again.
func (w *Watch) Run(ctx context.Context, set func(id uint64) error) {
	if w == nil {
		<-ctx.Done()
		return
	}
	told := w.ID()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.look()
		if id := w.ID(); id != told {
			if err := set(id); err != nil {
				w.log.Error("pods do not know kubelet's new cgroup: trying again", "error", err)
				continue
			}
			told = id
		}
	}
}

// Check says in words what State says.
func (w *Watch) Check() (ok bool, detail, remedy string) {
	place, err := w.State()
	if err != nil {
		return false, err.Error(), "give --kubelet-cgroup the cgroup v2 folder of kubelet; until then its http, tcp and grpc probes are refused by STRICT pods"
	}
	detail = "its probes come from the cgroup " + place.Folder
	if place.PID != 0 {
		detail = fmt.Sprintf("process %d; its probes come from the cgroup %s", place.PID, place.Folder)
	}
	if place.Others > 0 {
		detail += fmt.Sprintf(", which %d other processes share", place.Others)
	}
	return true, detail, ""
}
