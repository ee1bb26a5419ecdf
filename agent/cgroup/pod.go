package cgroup

import (
	"fmt"
	"regexp"
	"strings"
)

var podFolder = regexp.MustCompile(`^(?:kube.*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)

// PodUID finds a pod's UID in the text of /proc/PID/cgroup (cgroups(7)): a line
// HIERARCHY:CONTROLLERS:PATH for each hierarchy of v1, and 0::PATH for v2. kubelet
// names a pod's folder podUID with its cgroupfs driver, and
// kubepods-QOS-podUID.slice, "-" in the UID as "_", with its systemd driver
// (pkg/kubelet/cm/cgroup_manager_linux.go). Every hierarchy that knows of a pod
// must know the same one. What a pod makes inside its own folder comes after it,
// and counts for nothing.
func PodUID(cgroups string) (string, error) {
	found := ""
	for line := range strings.Lines(cgroups) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			return "", fmt.Errorf("cgroup line %.200q is not HIERARCHY:CONTROLLERS:PATH", line)
		}
		for folder := range strings.SplitSeq(parts[2], "/") {
			match := podFolder.FindStringSubmatch(folder)
			if match == nil {
				continue
			}
			uid := strings.ReplaceAll(match[1], "_", "-")
			if found != "" && uid != found {
				return "", fmt.Errorf("it is in the cgroups of two pods, %s and %s", found, uid)
			}
			found = uid
			break
		}
	}
	if found == "" {
		return "", fmt.Errorf("it is in no pod's cgroup (%.200q)", cgroups)
	}
	return found, nil
}
