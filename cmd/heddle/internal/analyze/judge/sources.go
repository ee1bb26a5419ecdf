package judge

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// Source is whence somebody connects: from a node's own network where Node is set.
type Source struct {
	Addr netip.Addr
	Node string
}

// SourceOf is whence a pod connects: from the first of its addresses, as a rule; false while
// it has none.
func SourceOf(p *corev1.Pod) (s Source, ok bool) {
	text := p.Status.PodIP
	if len(p.Status.PodIPs) > 0 {
		text = p.Status.PodIPs[0].IP
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return s, false
	}
	s.Addr = addr.Unmap()
	if p.Spec.HostNetwork {
		s.Node = p.Spec.NodeName
	}
	return s, true
}

// blocks returns an address of each block that policies of each namespace let in.
func (o *Objects) blocks() map[string][]Source {
	all := map[string][]Source{}
	add := func(namespace, block string) {
		prefix, err := netip.ParsePrefix(block)
		if s := (Source{Addr: prefix.Addr()}); err == nil && !slices.Contains(all[namespace], s) {
			all[namespace] = append(all[namespace], s)
		}
	}
	for i := range o.Authorizations {
		for _, rule := range o.Authorizations[i].Spec.Rules {
			for _, from := range rule.From {
				for _, block := range from.IPBlocks {
					add(o.Authorizations[i].Namespace, string(block))
				}
			}
		}
	}
	for i := range o.Policies {
		for _, block := range ingressBlocks(&o.Policies[i]) {
			add(o.Policies[i].Namespace, block.CIDR)
		}
	}
	return all
}

func ingressBlocks(p *networkingv1.NetworkPolicy) (all []*networkingv1.IPBlock) {
	for _, rule := range p.Spec.Ingress {
		for _, peer := range rule.From {
			if peer.IPBlock != nil {
				all = append(all, peer.IPBlock)
			}
		}
	}
	return all
}

// The labels by which pods of a Job have its name.
const (
	labelJob    = "batch.kubernetes.io/job-name"
	labelJobOld = "job-name" // before Kubernetes 1.27, and still beside it
)

// Stable are the labels that all pods of a workload share, in every version, and that tell them
// from others: none when nothing that stays selects them. The name of a Job, which others made
// after it may have, is one where there is no other, unless it is of one run of a CronJob.
func Stable(labels map[string]string) map[string]string {
	out := map[string]string{}
	for key, value := range labels {
		switch key {
		case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
			"controller-uid", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-completion-index", labelJob, labelJobOld,
			"app.kubernetes.io/version", "helm.sh/chart",
			corev1.LabelTopologyZone, corev1.LabelTopologyRegion, // copied from its node
			v1alpha1.LabelMesh: // of whoever is in the mesh
		default:
			out[key] = value
		}
	}
	if job := JobOf(labels); len(out) == 0 && job != "" && !isRun(job) {
		out[labelJob] = job
		if _, has := labels[labelJob]; !has {
			out = map[string]string{labelJobOld: job}
		}
	}
	return out
}

// JobOf is the name of the Job that a pod's labels have; "" when they have none.
func JobOf(labels map[string]string) string { return cmp.Or(labels[labelJob], labels[labelJobOld]) }

// isRun reports whether a Job's name is one that a CronJob makes: it ends in the minute for
// which it is (getJobName of Kubernetes' controller), of eight digits since 1989.
func isRun(job string) bool {
	minute := job[strings.LastIndexByte(job, '-')+1:]
	_, err := strconv.ParseUint(minute, 10, 64)
	return err == nil && len(minute) >= 8
}
