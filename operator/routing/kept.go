package routing

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/operator/say"
)

// The form in which good routes are kept: of each that is here, the object without its
// status, in a list of JSON, compressed, in one of some ConfigMaps by a hash of its name.
const (
	shards   = 8
	entry    = "routes.json.gz"
	baseName = "heddle-routes-"
	// maxKept bounds what one of them has, in octets: an API server takes 1 MiB of data.
	maxKept = 900 << 10
	// maxText bounds what is read of one, uncompressed.
	maxText = 64 << 20
)

// Names returns the names of the ConfigMaps that have routes.
func Names() []string {
	names := make([]string, shards)
	for i := range names {
		names[i] = fmt.Sprintf("%s%d", baseName, i)
	}
	return names
}

// ThroughName is the ConfigMap that has the waypoints in force, by service.
const ThroughName = "heddle-waypoints"

func shardOf(id route.ID) int {
	h := fnv.New32a()
	fmt.Fprint(h, id) // a hash takes everything
	return int(h.Sum32() % shards)
}

// Store keeps good routes in a namespace. Its methods may be called from any goroutine;
// one replica saves at a time.
type Store struct {
	client    typedcorev1.ConfigMapsGetter
	namespace string
	max       int
	log       *slog.Logger
	// through is what this replica has said of waypoints.
	through struct {
		sync.Mutex
		said map[mesh.Key]mesh.Key // when it saved or loaded last
	}
}

// NewStore returns the Store of a namespace.
func NewStore(client typedcorev1.ConfigMapsGetter, namespace string, log *slog.Logger) *Store {
	return &Store{client: client, namespace: namespace, max: maxKept, log: log}
}

// Load returns what is kept. What somebody has spoiled is logged, and is as if it had not
// been kept.
func (s *Store) Load(ctx context.Context) (routes.Good, error) {
	good := routes.Good{}
	for _, name := range Names() {
		m, err := s.client.ConfigMaps(s.namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the routes that were last good from ConfigMap %s/%s: %w", s.namespace, name, err)
		}
		list, err := decode(m.BinaryData[entry])
		if err != nil {
			s.log.Warn("what is kept of routes cannot be read: they are as if they had never been good, and are kept anew", "config_map", s.namespace+"/"+name, "error", err)
			continue
		}
		for _, g := range list {
			if id, ok := identify(g); ok {
				good[id] = g
			}
		}
	}
	return good, nil
}

// Save keeps these, and no others; of those of one object, the later of what is kept and of
// what is given. It writes what differs. What another has changed meanwhile is an error, and
// so is what cannot be written: it is to be tried again.
func (s *Store) Save(ctx context.Context, good routes.Good) error {
	by := make([][]routes.GoodRoute, shards)
	for _, id := range sortedIDs(good) {
		at := shardOf(id)
		by[at] = append(by[at], good[id])
	}
	var errs []error
	for i, name := range Names() {
		if err := s.save(ctx, name, by[i]); err != nil {
			errs = append(errs, fmt.Errorf("keep routes in ConfigMap %s/%s: %w", s.namespace, name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) save(ctx context.Context, name string, list []routes.GoodRoute) error {
	kept := s.client.ConfigMaps(s.namespace)
	m, err := kept.Get(ctx, name, metav1.GetOptions{})
	absent := apierrors.IsNotFound(err)
	switch {
	case absent && len(list) == 0:
		return nil
	case absent:
		m = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: ownLabels()}}
	case err != nil:
		return err
	}
	before, err := decode(m.BinaryData[entry])
	if err != nil {
		before = nil // it was warned of when it was read
	}
	data, lost, err := encode(later(list, before), s.max)
	if err != nil {
		return err
	}
	if !absent && bytes.Equal(data, m.BinaryData[entry]) {
		return nil
	}
	m.Data, m.BinaryData = nil, map[string][]byte{entry: data}
	if absent {
		_, err = kept.Create(ctx, m, metav1.CreateOptions{})
	} else {
		_, err = kept.Update(ctx, m, metav1.UpdateOptions{})
	}
	if err == nil && len(lost) > 0 {
		s.log.Warn("there are more routes than can be kept: when one of these has a fault after a restart of every operator, its good rules are in force, not what it was before",
			"config_map", name, "routes", strings.Join(lost[:min(len(lost), 5)], ", "), "in_all", len(lost))
	}
	return err
}

func ownLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "heddle", "app.kubernetes.io/part-of": "heddle", "app.kubernetes.io/managed-by": say.FieldManager}
}

// later returns list, with what was kept in place of an older generation of the same object.
func later(list, before []routes.GoodRoute) []routes.GoodRoute {
	was := map[route.ID]routes.GoodRoute{}
	for _, g := range before {
		if id, ok := identify(g); ok {
			was[id] = g
		}
	}
	out := slices.Clone(list)
	for i, g := range out {
		if id, ok := identify(g); ok && newer(was[id], g) {
			out[i] = was[id]
		}
	}
	return out
}

// identify returns what a kept route is; false when it is none.
func identify(g routes.GoodRoute) (route.ID, bool) {
	kind, m, ok := lookInto(g)
	if !ok || m.Name == "" || m.Namespace == "" {
		return route.ID{}, false
	}
	return idOf(kind, m), true
}

// bare is a good route without what is of no use later.
func bare(g routes.GoodRoute) (out routes.GoodRoute) {
	switch {
	case g.HTTP != nil:
		out.HTTP = &gatewayv1.HTTPRoute{ObjectMeta: bareMeta(&g.HTTP.ObjectMeta), Spec: g.HTTP.Spec}
	case g.GRPC != nil:
		out.GRPC = &gatewayv1.GRPCRoute{ObjectMeta: bareMeta(&g.GRPC.ObjectMeta), Spec: g.GRPC.Spec}
	case g.TLS != nil:
		out.TLS = &gatewayv1.TLSRoute{ObjectMeta: bareMeta(&g.TLS.ObjectMeta), Spec: g.TLS.Spec}
	case g.TCP != nil:
		out.TCP = &gatewayv1.TCPRoute{ObjectMeta: bareMeta(&g.TCP.ObjectMeta), Spec: g.TCP.Spec}
	}
	return out
}

func bareMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, Generation: m.Generation, CreationTimestamp: m.CreationTimestamp}
}

// encode returns routes as they are kept, and the names of those for which there is no room:
// the largest of the namespace that has most, until the rest fits.
func encode(list []routes.GoodRoute, limit int) (data []byte, lost []string, err error) {
	type item struct {
		id   route.ID
		text json.RawMessage
	}
	var items []item
	for _, g := range list {
		id, ok := identify(g)
		if !ok {
			continue
		}
		text, err := json.Marshal(bare(g))
		if err != nil {
			return nil, nil, fmt.Errorf("encode %s: %w", id, err)
		}
		items = append(items, item{id, text})
	}
	for {
		texts, size, by := make([]json.RawMessage, len(items)), 0, map[string]int{}
		for i, it := range items {
			texts[i], size = it.text, size+len(it.text)
			by[it.id.Namespace] += len(it.text)
		}
		if data, err = pack(texts); err != nil || len(data) <= limit {
			return data, lost, err
		}
		// So much of the text is too much, if it all packs alike.
		over := max(1, size-int(int64(size)*int64(limit)/int64(len(data))))
		for over > 0 && len(items) > 0 {
			largest := 0
			for i, it := range items {
				a, b := it, items[largest]
				if by[a.id.Namespace] > by[b.id.Namespace] || by[a.id.Namespace] == by[b.id.Namespace] && len(a.text) > len(b.text) {
					largest = i
				}
			}
			gone := items[largest]
			over, by[gone.id.Namespace] = over-len(gone.text), by[gone.id.Namespace]-len(gone.text)
			lost, items = append(lost, gone.id.String()), slices.Delete(items, largest, largest+1)
		}
	}
}

// pack compresses a list. Equal lists give equal octets.
func pack(texts []json.RawMessage) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	err := json.NewEncoder(w).Encode(texts)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("compress routes: %w", err)
	}
	return b.Bytes(), nil
}

// decode reads what encode wrote.
func decode(data []byte) ([]routes.GoodRoute, error) {
	if len(data) == 0 {
		return nil, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(text) > maxText {
		return nil, fmt.Errorf("it is more than %d MiB", maxText>>20)
	}
	var list []routes.GoodRoute
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return list, nil
}

// sortedIDs returns the keys of good routes, in order.
func sortedIDs(good routes.Good) []route.ID {
	return slices.SortedFunc(maps.Keys(good), func(a, b route.ID) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Key.Compare(b.Key))
	})
}

func idOf(kind route.Kind, m *metav1.ObjectMeta) route.ID {
	return route.ID{Kind: kind, Key: keyed.Key{Namespace: m.Namespace, Name: m.Name}}
}

// newer reports whether one of two good routes is a later generation of the same object.
func newer(a, b routes.GoodRoute) bool {
	x, y := metaOf(a), metaOf(b)
	return x != nil && y != nil && x.UID == y.UID && x.Generation > y.Generation
}

func metaOf(g routes.GoodRoute) *metav1.ObjectMeta {
	_, m, _ := lookInto(g)
	return m
}

// lookInto returns the kind and the metadata of the one object that a good route has; false when it has none, or several.
func lookInto(g routes.GoodRoute) (kind route.Kind, m *metav1.ObjectMeta, ok bool) {
	n := 0
	note := func(of route.Kind, at *metav1.ObjectMeta) { kind, m, n = of, at, n+1 }
	if g.HTTP != nil {
		note(route.HTTP, &g.HTTP.ObjectMeta)
	}
	if g.GRPC != nil {
		note(route.GRPC, &g.GRPC.ObjectMeta)
	}
	if g.TLS != nil {
		note(route.TLS, &g.TLS.ObjectMeta)
	}
	if g.TCP != nil {
		note(route.TCP, &g.TCP.ObjectMeta)
	}
	return kind, m, n == 1
}
