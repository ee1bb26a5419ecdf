// Package suite is Kubernetes' end-to-end tests of sig-network as one program, as
// Kubernetes builds all of its tests into e2e.test. It adds one thing: labels for the
// namespaces that the tests make, by the hook that the framework has for it.
package suite

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/e2e/common/network" // tests
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"   // as e2e.test has it: says what pods did when a test fails
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init" // as e2e.test has it
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"    // as e2e.test has it: waits for the nodes
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/network"        // tests
	_ "k8s.io/kubernetes/test/e2e/network/netpol" // tests
	testingmanifests "k8s.io/kubernetes/test/e2e/testing-manifests"
	"k8s.io/kubernetes/test/utils/image"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	labels := flag.String("namespace-labels", "", "labels of the namespaces that tests make: NAME=VALUE,NAME=VALUE")
	images := flag.Bool("images", false, "print the references of the images that the tests run, and end")
	flag.Parse()
	if *images {
		for _, id := range []image.ImageID{image.Agnhost, image.JessieDnsutils, image.BusyBox, image.Pause} {
			fmt.Println(image.GetE2EImage(id))
		}
		os.Exit(0)
	}
	added, err := parseLabels(*labels)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	testfiles.AddFileSource(testingmanifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	framework.TestContext.CreateTestingNS = func(ctx context.Context, base string, c clientset.Interface, labels map[string]string) (*v1.Namespace, error) {
		all := maps.Clone(added)
		maps.Copy(all, labels)
		return framework.CreateTestingNS(ctx, base, c, all)
	}
	os.Exit(m.Run())
}

// parseLabels reads NAME=VALUE,NAME=VALUE.
func parseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if text == "" {
			break
		}
		name, value, found := strings.Cut(pair, "=")
		if !found || name == "" {
			return nil, fmt.Errorf("--namespace-labels: %q is not NAME=VALUE", pair)
		}
		labels[name] = value
	}
	return labels, nil
}

func TestE2E(t *testing.T) { e2e.RunE2ETests(t) }
