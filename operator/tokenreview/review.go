// Package tokenreview finds out on which node an agent runs, and which pod a waypoint is, by
// the projected token of its pod: the API server reviews the token, for the operator's
// audience, and says whose it is and which pod and node it is bound to. It
// issues nothing.
//
// # Rights
//
// create on tokenreviews of authentication.k8s.io, which belongs to no
// namespace.
//
// A Reviewer is safe for concurrent use and starts nothing.
package tokenreview

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedauthenticationv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/issuing"
)

// The claims of bound tokens, as k8s.io/apiserver/pkg/authentication/serviceaccount
// names them. Nodes are among them since Kubernetes 1.30.
const (
	extraNode = "authentication.kubernetes.io/node-name"
	extraPod  = "authentication.kubernetes.io/pod-name"
	extraUID  = "authentication.kubernetes.io/pod-uid"
)

// Bounds. An agent that cannot finish joining asks every few seconds: a token
// that was reviewed is good for a while. One that was refused is asked about
// again: it may be that the API server did not know of its pod yet.
const (
	maxToken  = 16 << 10
	maxKept   = 1024
	keptFor   = 30 * time.Second
	askAtMost = 10 * time.Second
)

// Config says whose tokens count.
type Config struct {
	Client typedauthenticationv1.TokenReviewsGetter
	// Audience is the operator's: a token for another is refused.
	Audience string
	// Namespace and Account are the agents' service account.
	Namespace, Account string
	// Pod returns a pod of the cluster: for API servers older than 1.30, which
	// do not say which node a token is bound to.
	Pod func(mesh.Key) (*kube.Pod, bool)
}

// Reviewer implements issuing.Accounts.
type Reviewer struct {
	cfg Config

	kept struct {
		sync.Mutex
		byHash map[[sha256.Size]byte]reviewed
	}
}

type reviewed struct {
	*authenticationv1.TokenReviewStatus
	until time.Time
}

// Pod is what a token is bound to.
type Pod struct {
	mesh.Key
	UID string
}

var _ issuing.Accounts = (*Reviewer)(nil)

// New checks the configuration.
func New(cfg Config) (*Reviewer, error) {
	if cfg.Client == nil || cfg.Audience == "" || cfg.Namespace == "" || cfg.Account == "" || cfg.Pod == nil {
		return nil, errors.New("token review needs a client, an audience, the agents' service account, and pods")
	}
	r := &Reviewer{cfg: cfg}
	r.kept.byHash = map[[sha256.Size]byte]reviewed{}
	return r, nil
}

// NodeOf returns the node that the agent with this token runs on. The error
// matches issuing.ErrNotVouched when the token is not good, and then says why;
// any other error is about asking.
func (r *Reviewer) NodeOf(ctx context.Context, token string) (node string, err error) {
	err = r.review(ctx, token, func(status *authenticationv1.TokenReviewStatus) error {
		node, err = r.nodeOf(status)
		return err
	})
	return node, err
}

// PodOf returns the pod that this token is bound to, of any service account. The error is
// as NodeOf's.
func (r *Reviewer) PodOf(ctx context.Context, token string) (pod Pod, err error) {
	err = r.review(ctx, token, func(status *authenticationv1.TokenReviewStatus) error {
		pod, err = podOf(status)
		return err
	})
	return pod, err
}

// review asks for the API server's verdict about a token, unless it is known, and has it
// read.
func (r *Reviewer) review(ctx context.Context, token string, read func(*authenticationv1.TokenReviewStatus) error) error {
	if len(token) > maxToken {
		return fmt.Errorf("%w: token of %d bytes, the limit is %d", issuing.ErrNotVouched, len(token), maxToken)
	}
	hash := sha256.Sum256([]byte(token))
	if status, ok := r.recall(hash); ok && read(status) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askAtMost)
	defer cancel()
	review, err := r.cfg.Client.TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.cfg.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("review token: %w", err)
	}
	if err := r.accepted(&review.Status); err != nil {
		return fmt.Errorf("%w: %w", issuing.ErrNotVouched, err)
	}
	if err := read(&review.Status); err != nil {
		return fmt.Errorf("%w: %w", issuing.ErrNotVouched, err)
	}
	r.remember(hash, &review.Status)
	return nil
}

// accepted refuses a token that is not good, or not for the operator.
func (r *Reviewer) accepted(status *authenticationv1.TokenReviewStatus) error {
	switch {
	case !status.Authenticated:
		return fmt.Errorf("the API server does not accept the token: %s", strings.TrimSpace(status.Error))
	case !slices.Contains(status.Audiences, r.cfg.Audience):
		// An API server that knows no audiences says so by leaving them out.
		return fmt.Errorf("the token is for %q, not for %q; remedy: set the audience of the pod's projected token", status.Audiences, r.cfg.Audience)
	}
	return nil
}

// extra returns a claim of a bound token; "" when it is not there.
func extra(status *authenticationv1.TokenReviewStatus, name string) string {
	if values := status.User.Extra[name]; len(values) == 1 {
		return values[0]
	}
	return ""
}

// podOf reads which pod a token is bound to.
func podOf(status *authenticationv1.TokenReviewStatus) (Pod, error) {
	account, ok := strings.CutPrefix(status.User.Username, "system:serviceaccount:")
	namespace, _, _ := strings.Cut(account, ":")
	name, uid := extra(status, extraPod), extra(status, extraUID)
	if !ok || name == "" || uid == "" {
		return Pod{}, errors.New("the token is bound to no pod; remedy: use a projected token, as a waypoint's Deployment does")
	}
	return Pod{mesh.Key{Namespace: namespace, Name: name}, uid}, nil
}

// nodeOf reads the API server's verdict.
func (r *Reviewer) nodeOf(status *authenticationv1.TokenReviewStatus) (string, error) {
	if want := "system:serviceaccount:" + r.cfg.Namespace + ":" + r.cfg.Account; status.User.Username != want {
		return "", fmt.Errorf("the token is of %s, agents are %s", status.User.Username, want)
	}
	if node := extra(status, extraNode); node != "" {
		return node, nil
	}
	name, uid := extra(status, extraPod), extra(status, extraUID)
	if name == "" || uid == "" {
		return "", errors.New("the token is bound to no pod; remedy: use a projected token, as the agent's DaemonSet does")
	}
	pod, ok := r.cfg.Pod(mesh.Key{Namespace: r.cfg.Namespace, Name: name})
	if !ok || pod.UID != uid || pod.Node == "" {
		return "", fmt.Errorf("the token is bound to pod %s/%s with UID %s, which is not among the cluster's pods", r.cfg.Namespace, name, uid)
	}
	return pod.Node, nil
}

func (r *Reviewer) recall(hash [sha256.Size]byte) (*authenticationv1.TokenReviewStatus, bool) {
	r.kept.Lock()
	defer r.kept.Unlock()
	known, ok := r.kept.byHash[hash]
	return known.TokenReviewStatus, ok && time.Now().Before(known.until)
}

func (r *Reviewer) remember(hash [sha256.Size]byte, status *authenticationv1.TokenReviewStatus) {
	now := time.Now()
	r.kept.Lock()
	defer r.kept.Unlock()
	if len(r.kept.byHash) >= maxKept {
		for h, known := range r.kept.byHash {
			if now.After(known.until) {
				delete(r.kept.byHash, h)
			}
		}
	}
	if len(r.kept.byHash) < maxKept { // else it is reviewed again
		r.kept.byHash[hash] = reviewed{status, now.Add(keptFor)}
	}
}
