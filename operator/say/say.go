// Package say is how the leader tells people of what is not theirs to write: conditions
// whose times hold still, and events that are created once. It knows neither routes nor
// gateways.
//
// # Rights
//
// create on events, in all namespaces.
//
// A Teller's methods are for one goroutine.
package say

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// FieldManager is who writes.
const FieldManager = "heddle-operator"

const (
	// retell is when an event is created again, while its cause goes on. An API server
	// forgets events after an hour; one that is still there is left alone.
	retell = 30 * time.Minute
	// maxMessage is what the API lets an event's message have, in octets.
	maxMessage = 1024
	maxName    = 200
)

// Since gives conditions the time from which they have their status: that of the ones that
// are there, or now. Of which generation they are, they say themselves.
func Since(want, have []metav1.Condition, now time.Time) []metav1.Condition {
	for i := range want {
		c := &want[i]
		c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
		for _, h := range have {
			if h.Type == c.Type && h.Status == c.Status && !h.LastTransitionTime.IsZero() {
				c.LastTransitionTime = h.LastTransitionTime
			}
		}
	}
	return want
}

// Teller creates events.
type Teller struct {
	events typedcorev1.EventsGetter
	limit  *rate.Limiter
	told   map[string]time.Time
}

// NewTeller returns one that has told of nothing. What it writes counts for the limit.
func NewTeller(events typedcorev1.EventsGetter, limit *rate.Limiter) *Teller {
	return &Teller{events: events, limit: limit, told: map[string]time.Time{}}
}

// Warn creates a warning about an object, unless it was told of lately. The event's name
// comes from what it says, so that another leader does not tell of it again.
func (t *Teller) Warn(ctx context.Context, about corev1.ObjectReference, reason, message string) error {
	hash := sha256.Sum256([]byte(string(about.UID) + reason + message))
	name := about.Name
	if len(name) > maxName {
		name = name[:maxName]
	}
	name += "." + hex.EncodeToString(hash[:8])
	if at, told := t.told[about.Namespace+"/"+name]; told && time.Since(at) < retell {
		return nil
	}
	if err := t.limit.Wait(ctx); err != nil {
		return nil // ctx has ended
	}
	if len(message) > maxMessage {
		message = message[:maxMessage-3] + "..."
	}
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events of what has no namespace are
	}
	now := metav1.Now()
	_, err := t.events.Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, InvolvedObject: about,
		Type: corev1.EventTypeWarning, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: FieldManager}, ReportingController: v1alpha1.Group + "/operator",
	}, metav1.CreateOptions{})
	// In a namespace that is being deleted nothing can be created any more.
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return err
	}
	t.told[about.Namespace+"/"+name] = time.Now()
	return nil
}

// Forget drops what was told of too long ago to matter.
func (t *Teller) Forget() {
	for name, at := range t.told {
		if time.Since(at) > retell {
			delete(t.told, name)
		}
	}
}
