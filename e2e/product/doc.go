// Package product runs Heddle as its users do, on real Kubernetes with the images,
// the chart and the CLI of this checkout: install, enroll, roll, upgrade, reboot,
// uninstall; and every scenario of e2e/scenario. It has tests only; the clusters are
// those of e2e/cluster.
package product
