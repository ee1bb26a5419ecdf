package routing

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// throughEntry is the entry of the ConfigMap that has the waypoints in force: a list of
// JSON, compressed, of services with their waypoints, sorted.
const throughEntry = "waypoints.json.gz"

// inForce is one service, and the waypoint that it has.
type inForce struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Waypoint  string `json:"waypoint"`
}

// LoadThrough returns the waypoints that were in force, by service. What somebody has
// spoiled is logged, and is as if it had not been kept.
func (s *Store) LoadThrough(ctx context.Context) (map[mesh.Key]mesh.Key, error) {
	m, err := s.client.ConfigMaps(s.namespace).Get(ctx, ThroughName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		m, err = &corev1.ConfigMap{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which waypoints were in force from ConfigMap %s/%s: %w", s.namespace, ThroughName, err)
	}
	all, err := decodeThrough(m.BinaryData[throughEntry])
	if err != nil {
		s.log.Warn("what is kept of waypoints cannot be read: services whose waypoints are not ready now are reached without them until they are", "config_map", s.namespace+"/"+ThroughName, "error", err)
	}
	s.through.Lock()
	defer s.through.Unlock()
	s.through.said = maps.Clone(all)
	return all, nil
}

// maxConflicts is how often what others write meanwhile is read anew before it is an error.
const maxConflicts = 5

// SaveThrough keeps the waypoints in force, by service. Of what is kept it changes what is
// different from what this Store saved last, or loaded: what another replica has kept
// meanwhile stays, of which this one may not have heard yet. Nothing is written when there
// is nothing to change, and never over what was not read.
func (s *Store) SaveThrough(ctx context.Context, all map[mesh.Key]mesh.Key) error {
	s.through.Lock()
	defer s.through.Unlock()
	var err error
	for range maxConflicts {
		if err = s.mergeThrough(ctx, all); err == nil {
			s.through.said = maps.Clone(all)
			return nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			break
		}
	}
	return fmt.Errorf("keep waypoints in ConfigMap %s/%s: %w", s.namespace, ThroughName, err)
}

// mergeThrough reads and writes once.
func (s *Store) mergeThrough(ctx context.Context, all map[mesh.Key]mesh.Key) error {
	kept := s.client.ConfigMaps(s.namespace)
	m, err := kept.Get(ctx, ThroughName, metav1.GetOptions{})
	absent := apierrors.IsNotFound(err)
	if err != nil && !absent {
		return err
	}
	next := all
	if !absent {
		if now, err := decodeThrough(m.BinaryData[throughEntry]); err == nil { // else it was warned of when it was read
			next = merged(now, s.through.said, all)
		}
	}
	data, err := encodeThrough(next)
	switch {
	case err != nil:
		return err
	case len(data) > s.max:
		return fmt.Errorf("%d services have one, more than there is room for; remedy: label namespaces that need no waypoint none", len(next))
	case absent && len(next) == 0, !absent && bytes.Equal(m.BinaryData[throughEntry], data):
		return nil
	case absent:
		_, err = kept.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: ThroughName, Labels: ownLabels()},
			BinaryData: map[string][]byte{throughEntry: data}}, metav1.CreateOptions{})
	default: // of the version that was read
		m.Data, m.BinaryData = nil, map[string][]byte{throughEntry: data}
		_, err = kept.Update(ctx, m, metav1.UpdateOptions{})
	}
	return err
}

// merged returns now with the changes from before to after.
func merged(now, before, after map[mesh.Key]mesh.Key) map[mesh.Key]mesh.Key {
	out := maps.Clone(now)
	for service := range before {
		if _, there := after[service]; !there {
			delete(out, service)
		}
	}
	for service, waypoint := range after {
		if before[service] != waypoint {
			out[service] = waypoint
		}
	}
	return out
}

func encodeThrough(all map[mesh.Key]mesh.Key) ([]byte, error) {
	list := make([]inForce, 0, len(all))
	for _, service := range slices.SortedFunc(maps.Keys(all), mesh.Key.Compare) {
		list = append(list, inForce{service.Namespace, service.Name, all[service].Name})
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	err := json.NewEncoder(w).Encode(list)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("compress waypoints: %w", err)
	}
	return b.Bytes(), nil
}

// decodeThrough reads what encodeThrough wrote.
func decodeThrough(data []byte) (map[mesh.Key]mesh.Key, error) {
	all := map[mesh.Key]mesh.Key{}
	if len(data) == 0 {
		return all, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return all, fmt.Errorf("decompress: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil || len(text) > maxText {
		return all, fmt.Errorf("decompress %d bytes: %w", len(text), err)
	}
	var list []inForce
	if err := json.Unmarshal(text, &list); err != nil {
		return all, fmt.Errorf("decode: %w", err)
	}
	for _, one := range list {
		if one.Namespace != "" && one.Service != "" && one.Waypoint != "" {
			all[mesh.Key{Namespace: one.Namespace, Name: one.Service}] = mesh.Key{Namespace: one.Namespace, Name: one.Waypoint}
		}
	}
	return all, nil
}
