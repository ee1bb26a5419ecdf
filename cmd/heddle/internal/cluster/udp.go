package cluster

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// udpFlags are those by which an operator takes policies about UDP, of this version and of
// the one before.
func udpFlags() []string { return []string{"udp-by-identity", "experimental-udp"} }

// TakesUDP reports whether the cluster's operator takes policies about UDP: by the flags and
// the environment of its Deployment.
func (c *Cluster) TakesUDP(ctx context.Context) (bool, error) {
	d, err := c.Core.AppsV1().Deployments(c.namespace).Get(ctx, "heddle-operator", metav1.GetOptions{})
	if err != nil {
		return false, c.Explain(fmt.Sprintf("read the Deployment heddle-operator of namespace %s", c.namespace), err)
	}
	i := slices.IndexFunc(d.Spec.Template.Spec.Containers, func(c corev1.Container) bool { return c.Name == "operator" })
	return i >= 0 && takesUDP(&d.Spec.Template.Spec.Containers[i]), nil
}

// takesUDP has the last flag of a name win, and flags before the environment.
func takesUDP(c *corev1.Container) bool {
	for _, name := range udpFlags() {
		said := ""
		for _, env := range c.Env {
			if env.Name == "HEDDLE_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_")) {
				said = env.Value
			}
		}
		for _, arg := range slices.Concat(c.Command, c.Args) {
			if flag, value, set := strings.Cut(arg, "="); flag == "--"+name {
				if said = "true"; set {
					said = value
				}
			}
		}
		if on, err := strconv.ParseBool(said); err == nil && on {
			return true
		}
	}
	return false
}
