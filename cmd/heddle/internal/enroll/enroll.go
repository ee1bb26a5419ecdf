// Package enroll brings the pods of a namespace into the mesh, and out of it: it
// looks at what would be cut off, labels the namespace, and waits until agents
// report that every pod has followed. What agents do with a pod is theirs.
//
// Two people's acts on one namespace are kept apart by the API server only.
package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
)

// ErrCutOff is matched when enrolling was refused for what it would cut off.
var ErrCutOff = errors.New("enrolling would cut something off")

// ErrNotInTime is matched when pods had not followed within the bound.
var ErrNotInTime = errors.New("not every pod has followed")

// Agents asks the agents of some nodes how they are. The error says that it is not
// known who they are.
type Agents func(ctx context.Context, nodes []string) ([]reach.Answer[*meshpb.AgentStatus], error)

// Request says what to do.
type Request struct {
	Namespace string
	// Strict makes every port of the namespace STRICT that no PeerAuthentication
	// with a selector names.
	Strict bool
	// Fix applies what keeps working what would be cut off; Force goes on
	// whatever is.
	Fix, Force bool
	// DryRun changes nothing.
	DryRun bool
	// Wait bounds the wait for the pods; 0 does not wait.
	Wait time.Duration
	// Progress gets a line for each thing that was done or is waited for.
	Progress io.Writer
}

func (r *Request) say(format string, args ...any) {
	fmt.Fprintf(r.Progress, "heddle: "+format+"\n", args...)
}

// Result is what became of it.
type Result struct {
	Namespace string `json:"namespace"`
	Enrolled  bool   `json:"enrolled"`
	DryRun    bool   `json:"dryRun,omitempty"`
	// Leaving is set by Unenroll.
	Leaving bool `json:"leaving,omitempty"`
	// Findings are what is cut off, or would be.
	Findings []analyze.Finding `json:"findings"`
	// Pods are those of the namespace, as agents reported them last; none when
	// nobody waited.
	Pods []Pod `json:"pods"`
}

// Enroll labels a namespace. Where that would cut something off, it changes
// nothing, and the error matches ErrCutOff; the Result has the findings.
func Enroll(ctx context.Context, c *cluster.Cluster, agents Agents, r Request) (*Result, error) {
	result := &Result{Namespace: r.Namespace, DryRun: r.DryRun, Findings: []analyze.Finding{}, Pods: []Pod{}}
	if r.Namespace == c.Namespace() || strings.HasPrefix(r.Namespace, "kube-") {
		return result, fmt.Errorf("enroll %s: the cluster, or Heddle itself, cannot start without its pods: they stay outside the mesh", r.Namespace)
	}
	if err := ready(ctx, c, r.Namespace); err != nil {
		return result, err
	}
	objects, err := analyze.FromCluster(ctx, c)
	if err != nil {
		return result, err
	}
	if note := objects.ComesIntoForce(r.Namespace); note != "" {
		r.say("%s", note)
	}
	objects.Enroll(r.Namespace, r.Strict)
	found, err := objects.Analyze(r.Namespace)
	if err != nil {
		return result, err
	}
	result.Findings = append(result.Findings, found...)
	open := slices.DeleteFunc(slices.Clone(found), func(f analyze.Finding) bool { return f.Warning || r.Fix && f.Fix != "" })
	if len(open) > 0 && !r.Force {
		return result, fmt.Errorf("%w: %d things, see above; remedy: %s, or go on whatever is cut off with --force", ErrCutOff, len(open), remedyOf(open))
	}
	if r.DryRun {
		return result, nil
	}
	if err := prepare(ctx, c, &r, found); err != nil {
		return result, err
	}
	if err := label(ctx, c, r.Namespace, v1alpha1.MeshEnabled); err != nil {
		return result, err
	}
	result.Enrolled = true
	r.say("namespace %s is labelled %s=%s", r.Namespace, v1alpha1.LabelMesh, v1alpha1.MeshEnabled)
	result.Pods, err = wait(ctx, c, agents, &r, true)
	return result, err
}

// remedyOf promises --fix only where there is what it could apply.
func remedyOf(open []analyze.Finding) string {
	without := 0
	for _, f := range open {
		if f.Fix == "" {
			without++
		}
	}
	switch without {
	case 0:
		return "apply what is printed (--fix does it)"
	case len(open):
		return "do what is said there, which --fix cannot"
	}
	return fmt.Sprintf("apply what is printed (--fix does it), and do what is said of the other %d, which --fix cannot", without)
}

// there checks that the namespace is.
func there(ctx context.Context, c *cluster.Cluster, namespace string) error {
	_, err := c.Core.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return reach.NoNamespace(namespace)
	}
	return c.Explain("get namespace "+namespace, err)
}

// ready checks that the namespace is there, and Heddle.
func ready(ctx context.Context, c *cluster.Cluster, namespace string) error {
	if err := there(ctx, c, namespace); err != nil {
		return err
	}
	programs, err := c.Agents(ctx, "")
	if err == nil && len(programs) == 0 {
		err = fmt.Errorf("no agent runs in namespace %s of the cluster; remedy: `heddle install`, or name the namespace with --system-namespace", c.Namespace())
	}
	return err
}

// prepare makes, before the label, what is to hold with it.
func prepare(ctx context.Context, c *cluster.Cluster, r *Request, found []analyze.Finding) error {
	if r.Fix {
		for _, text := range analyze.Fixes(found) {
			object := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
				return fmt.Errorf("read what mends a finding: %w", err)
			}
			if err := apply(ctx, c, object); err != nil {
				return err
			}
			r.say("%s %s/%s is applied", object.GetKind(), object.GetNamespace(), object.GetName())
		}
	}
	if !r.Strict {
		return nil
	}
	text, err := json.Marshal(analyze.Strict(r.Namespace))
	if err != nil {
		return fmt.Errorf("write %s: %w", analyze.StrictName, err)
	}
	object := &unstructured.Unstructured{}
	if err := json.Unmarshal(text, &object.Object); err != nil {
		return fmt.Errorf("read %s: %w", analyze.StrictName, err)
	}
	delete(object.Object, "status")
	if err := apply(ctx, c, object); err != nil {
		return err
	}
	r.say("PeerAuthentication %s/%s makes its ports STRICT", r.Namespace, analyze.StrictName)
	return nil
}

// resources are those of the kinds that are applied.
func resourceOf(kind string) schema.GroupVersionResource {
	switch kind {
	case "NetworkPolicy":
		return schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}
	case "AuthorizationPolicy":
		return v1alpha1.GroupVersion().WithResource("authorizationpolicies")
	}
	return v1alpha1.GroupVersion().WithResource("peerauthentications")
}

func apply(ctx context.Context, c *cluster.Cluster, object *unstructured.Unstructured) error {
	data, err := object.MarshalJSON()
	if err == nil {
		_, err = c.Dynamic.Resource(resourceOf(object.GetKind())).Namespace(object.GetNamespace()).
			Patch(ctx, object.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: cluster.FieldManager})
	}
	return c.Explain(fmt.Sprintf("apply %s %s/%s", object.GetKind(), object.GetNamespace(), object.GetName()), err)
}

// label sets a namespace's label; "" takes it away.
func label(ctx context.Context, c *cluster.Cluster, namespace, value string) error {
	wanted := map[string]any{v1alpha1.LabelMesh: value}
	if value == "" {
		wanted[v1alpha1.LabelMesh] = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": wanted}})
	if err == nil {
		_, err = c.Core.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: cluster.FieldManager})
	}
	return c.Explain("label namespace "+namespace, err)
}

// Unenroll takes the label away, and the PeerAuthentication that Enroll made.
func Unenroll(ctx context.Context, c *cluster.Cluster, agents Agents, r Request) (*Result, error) {
	result := &Result{Namespace: r.Namespace, DryRun: r.DryRun, Leaving: true, Findings: []analyze.Finding{}, Pods: []Pod{}}
	if err := there(ctx, c, r.Namespace); err != nil {
		return result, err
	}
	if r.DryRun {
		return result, nil
	}
	if err := label(ctx, c, r.Namespace, ""); err != nil {
		return result, err
	}
	r.say("namespace %s has no label %s any more", r.Namespace, v1alpha1.LabelMesh)
	modes := c.Dynamic.Resource(resourceOf("PeerAuthentication")).Namespace(r.Namespace)
	strict, err := modes.Get(ctx, analyze.StrictName, metav1.GetOptions{})
	if err == nil && strict.GetLabels()["app.kubernetes.io/managed-by"] == "heddle" {
		if err = modes.Delete(ctx, analyze.StrictName, metav1.DeleteOptions{}); err == nil {
			r.say("PeerAuthentication %s/%s is deleted", r.Namespace, analyze.StrictName)
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return result, c.Explain("delete PeerAuthentication "+r.Namespace+"/"+analyze.StrictName, err)
	}
	result.Pods, err = wait(ctx, c, agents, &r, false)
	return result, err
}
