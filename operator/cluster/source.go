package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/delta"
	"github.com/heddle-mesh/heddle/internal/kube/trim"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Source mirrors a cluster.
type Source struct {
	cfg *rest.Config
	log *slog.Logger

	trimming struct {
		sync.Mutex
		*trim.Trimmer
	}
	tables []*table // in the order of resources
	mirror struct {
		sync.Mutex
		epoch   uint64 // the newest version that changed something
		changed chan struct{}
		// recent are the last changes, up to the one of mark. Before them is what was
		// changed otherwise, or is too long ago.
		recent []delta.Change
		mark   uint64
		// rerouted is closed when what Routing returns may be different, seen counts what
		// was read of it, statuses as well.
		rerouted chan struct{}
		seen     uint64
	}
}

// NewSource returns a Source that has read nothing. With allSlices it reads all
// EndpointSlices, and keeps of those of Kubernetes' own controller what is not like them.
func NewSource(cfg *rest.Config, allSlices bool, log *slog.Logger) *Source {
	s := &Source{cfg: cfg, log: log}
	s.trimming.Trimmer = trim.New()
	s.mirror.changed, s.mirror.rerouted = make(chan struct{}), make(chan struct{})
	for _, r := range resources(allSlices) {
		s.tables = append(s.tables, &table{source: s, resource: r, rows: map[mesh.Key]any{}})
	}
	return s
}

// Run lists and watches until ctx ends. While the API server is away, or refuses,
// it tries again; the mirror stays as it was.
func (s *Source) Run(ctx context.Context) error {
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	// What client-go says by itself goes where everything goes.
	klogger := logr.FromSlogHandler(s.log.Handler()).WithName("kubernetes")
	ctx = klog.NewContext(ctx, klogger)
	g, ctx := errgroup.WithContext(ctx)
	var later []*table
	for _, t := range s.tables {
		if t.resource.optional {
			later = append(later, t)
			continue
		}
		reflector, err := s.reflector(scheme, t, t.resource.group, &klogger)
		if err != nil {
			g.Go(func() error { return err })
			return g.Wait()
		}
		g.Go(func() error { reflector.RunWithContext(ctx); return nil })
	}
	g.Go(func() error { return s.followServed(ctx, scheme, later, &klogger) })
	return g.Wait()
}

// reflector keeps a table as the API server's resource is.
func (s *Source) reflector(scheme *runtime.Scheme, t *table, group schema.GroupVersion, klogger *logr.Logger) (*cache.Reflector, error) {
	client, err := restClient(s.cfg, scheme, group)
	if err != nil {
		return nil, err
	}
	lw := cache.NewFilteredListWatchFromClient(client, t.resource.name, metav1.NamespaceAll, func(o *metav1.ListOptions) { o.LabelSelector = t.resource.labels })
	return cache.NewReflectorWithOptions(lw, t.resource.example, t, cache.ReflectorOptions{Name: t.resource.name, Logger: klogger, Backoff: retries()}), nil
}

// retries are how often an API server that is away is asked again: every few seconds
// at last, so that what has changed is known soon after it is back.
func retries() *wait.Backoff {
	return &wait.Backoff{Duration: 500 * time.Millisecond, Cap: 4 * time.Second, Steps: 8, Factor: 2, Jitter: 0.5}
}

// maxRecent bounds the changes that are kept for one who follows them.
const maxRecent = 4096

// changedLocked notes a change of one object. The caller holds mirror.
func (s *Source) changedLocked(version string, change delta.Change) {
	m := &s.mirror
	if len(m.recent) >= maxRecent {
		m.recent = nil
	}
	m.recent = append(m.recent, change)
	s.wakeLocked(version)
}

// replacedLocked notes that much may have changed. The caller holds mirror.
func (s *Source) replacedLocked(version string) {
	s.mirror.recent = nil
	s.wakeLocked(version)
}

// reroutedLocked notes a change of what requests are routed by. The caller holds mirror.
func (s *Source) reroutedLocked(version string) {
	m := &s.mirror
	m.epoch = max(m.epoch, versionNumber(version))
	close(m.rerouted)
	m.rerouted = make(chan struct{})
}

func (s *Source) wakeLocked(version string) {
	m := &s.mirror
	m.mark++
	m.epoch = max(m.epoch, versionNumber(version))
	close(m.changed)
	m.changed = make(chan struct{})
}

// Since returns what has changed since a mark, in order, with the epoch and the mark
// of now. It returns false when it does not know: then Objects has all. It is for
// one follower: what comes before the mark is forgotten.
func (s *Source) Since(mark uint64) (changes []delta.Change, epoch, now uint64, ok bool) {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	m := &s.mirror
	missed := m.mark - mark
	if mark > m.mark || missed > uint64(len(m.recent)) {
		return nil, m.epoch, m.mark, false
	}
	m.recent = slices.Clone(m.recent[len(m.recent)-int(missed):])
	return m.recent[:len(m.recent):len(m.recent)], m.epoch, m.mark, true
}

// Changed returns a channel that is closed at the next change. Take it before
// Objects, so that none is missed between the two.
func (s *Source) Changed() <-chan struct{} {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	return s.mirror.changed
}

// Synced is nil when everything was read once; else it names what is missing.
func (s *Source) Synced() error {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	var missing []string
	for _, t := range s.tables {
		if !t.synced {
			missing = append(missing, t.resource.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not read yet: %s", strings.Join(missing, ", "))
	}
	return nil
}

// Objects returns everything that is known at this moment, and its epoch. The
// objects are shared: read only.
func (s *Source) Objects() (*kube.Objects, uint64) {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	objs := &kube.Objects{Zones: map[string]string{}, Mark: s.mirror.mark}
	for _, t := range s.tables {
		if t.resource.apart {
			continue
		}
		for _, row := range t.rows {
			t.resource.add(objs, row)
		}
	}
	return objs, s.mirror.epoch
}

// Counts returns the number of objects that are known, by resource.
func (s *Source) Counts() map[string]int {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	counts := map[string]int{}
	for _, t := range s.tables {
		counts[t.resource.name] = len(t.rows)
	}
	return counts
}

// HasNode reports whether the cluster has a node of this name.
func (s *Source) HasNode(name string) bool {
	_, ok := s.row("nodes", mesh.Key{Name: name}).(*node)
	return ok
}

// Tainted is a node that has the startup taint.
type Tainted struct {
	Name string
	// Taints are all that it has: read only.
	Taints []corev1.Taint
	// Ready is set when the node's agent is, and became so after the node was created: one
	// that was ready before was on another node of that name, and its pod is about to go.
	Ready bool
}

// Tainted returns the nodes that have the startup taint, in order of their names. Agents
// are the pods of a service account.
func (s *Source) Tainted(namespace, account string) []Tainted {
	nodes, pods := s.table("nodes"), s.table("pods")
	s.mirror.Lock()
	defer s.mirror.Unlock()
	var all []Tainted
	created := map[string]int64{}
	for _, row := range nodes.rows {
		if n := row.(*node); n.taints != nil {
			all, created[n.name] = append(all, Tainted{Name: n.name, Taints: n.taints}), n.created
		}
	}
	if len(all) == 0 {
		return nil
	}
	ready := map[string]bool{}
	for _, row := range pods.rows {
		p := row.(*kube.Pod)
		if since, tainted := created[p.Node]; tainted && p.Namespace == namespace && p.ServiceAccount == account && p.Ready && p.ReadySince >= since && !p.Terminating && !p.Finished {
			ready[p.Node] = true
		}
	}
	for i := range all {
		all[i].Ready = ready[all[i].Name]
	}
	slices.SortFunc(all, func(a, b Tainted) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Pod returns a pod of the cluster.
func (s *Source) Pod(key mesh.Key) (*kube.Pod, bool) {
	p, ok := s.row("pods", key).(*kube.Pod)
	return p, ok
}

func (s *Source) row(resource string, key mesh.Key) any {
	t := s.table(resource)
	s.mirror.Lock()
	defer s.mirror.Unlock()
	return t.rows[key]
}

// table returns the mirror of a resource; there is one for each of resources.
func (s *Source) table(resource string) *table {
	i := slices.IndexFunc(s.tables, func(t *table) bool { return t.resource.name == resource })
	return s.tables[i]
}
