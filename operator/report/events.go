package report

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// EventReason is that of events on what is refused.
const EventReason = "MeshRefused"

// retell is when an event is created again, while its cause goes on. An API
// server forgets events after an hour; one that is still there is left alone.
const retell = 30 * time.Minute

// tell creates the event of a problem, unless it was told of lately. Its name
// comes from the problem, so that another leader does not tell of it again.
func (r *Reporter) tell(ctx context.Context, p *kube.Problem, about corev1.ObjectReference) error {
	if about.Kind == "" {
		return nil // gone meanwhile
	}
	hash := sha256.Sum256([]byte(string(about.UID) + p.Error()))
	name := p.Ref.Name
	if len(name) > 200 {
		name = name[:200]
	}
	name += "." + hex.EncodeToString(hash[:8])
	if at, told := r.told[name]; told && time.Since(at) < retell {
		return nil
	}
	if err := r.limit.Wait(ctx); err != nil {
		return nil // ctx has ended
	}
	namespace := p.Ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events of what has no namespace are
	}
	now := metav1.Now()
	_, err := r.cfg.Events.Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, InvolvedObject: about,
		Type: corev1.EventTypeWarning, Reason: EventReason, Message: message([]*kube.Problem{p}),
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: fieldManager}, ReportingController: v1alpha1.Group + "/operator",
	}, metav1.CreateOptions{})
	// In a namespace that is being deleted nothing can be created any more.
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return err
	}
	r.told[name] = time.Now()
	return nil
}

// references names the objects that problems are about and that are there.
func references(problems []*kube.Problem, objs *kube.Objects) map[kube.Ref]corev1.ObjectReference {
	about := map[kube.Ref]corev1.ObjectReference{}
	for _, p := range problems {
		about[p.Ref] = corev1.ObjectReference{}
	}
	found := func(ref kube.Ref, uid types.UID, apiVersion string) {
		if _, wanted := about[ref]; wanted {
			about[ref] = corev1.ObjectReference{APIVersion: apiVersion, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, UID: uid}
		}
	}
	for _, p := range objs.Pods {
		found(kube.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}, types.UID(p.UID), "v1")
	}
	for _, ns := range objs.Namespaces {
		found(kube.Ref{Kind: "Namespace", Name: ns.Value.Name}, ns.Value.UID, "v1")
	}
	for _, svc := range objs.Services {
		found(refOf("Service", &svc.Value.ObjectMeta), svc.Value.UID, "v1")
	}
	for _, np := range objs.NetworkPolicies { // which have no status that could say it
		found(refOf("NetworkPolicy", &np.Value.ObjectMeta), np.Value.UID, "networking.k8s.io/v1")
	}
	for _, s := range subjects(objs) {
		if s.resource != "" {
			found(s.ref, s.meta.UID, v1alpha1.GroupVersion().String())
		}
	}
	return about
}
