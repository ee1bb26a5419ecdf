// Package chart renders the Helm chart that the program carries, by Helm's own
// engine: what it renders is what `helm template` renders, but for the label that
// says who installed it. It reads values and writes nothing; it knows no
// cluster. All functions may be called concurrently.
package chart

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/heddle-mesh/heddle/manifests"
)

// Namespace is where Heddle lives unless told otherwise.
const Namespace = "heddle-system"

// Service is the value of the label app.kubernetes.io/managed-by of what this
// program installs.
const Service = "heddle"

// Options say what to render.
type Options struct {
	// Namespace of everything that has one; "" is Namespace.
	Namespace string
	// Version of the programs' images; "" is the chart's own.
	Version string
	// KubeVersion is the API server's, such as v1.34.4; "" is a new enough one.
	KubeVersion string
	// Values win over the chart's own.
	Values map[string]any
}

// File is one file of YAML.
type File struct {
	Name string // without a folder
	Text []byte
}

// ErrValues is matched by errors about Options.Values: they name the field.
var ErrValues = errors.New("values")

// load reads the chart out of the program.
func load() (*helmchart.Chart, error) {
	var files []*loader.BufferedFile
	err := fs.WalkDir(manifests.Chart, "heddle", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := manifests.Chart.ReadFile(name)
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(name, "heddle/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	return loader.LoadFiles(files)
}

// Version returns the chart's own version.
func Version() (string, error) {
	c, err := load()
	if err != nil {
		return "", err
	}
	return c.AppVersion(), nil
}

// Render returns the chart's files, sorted by name: definitions, which are the
// same whatever the values are, and everything else. Its error names the value
// that is wrong.
func Render(o Options) (definitions, files []File, err error) {
	c, err := load()
	if err != nil {
		return nil, nil, err
	}
	if o.Version != "" {
		c.Metadata.AppVersion = o.Version
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	if o.KubeVersion != "" {
		if capabilities.KubeVersion, err = kubeVersion(o.KubeVersion); err != nil {
			return nil, nil, err
		}
		if !chartutil.IsCompatibleRange(c.Metadata.KubeVersion, capabilities.KubeVersion.Version) {
			return nil, nil, fmt.Errorf("the cluster is Kubernetes %s, and Heddle needs %s; remedy: upgrade the cluster", o.KubeVersion, strings.TrimSuffix(c.Metadata.KubeVersion, "-0"))
		}
	}
	release := chartutil.ReleaseOptions{Name: "heddle", Namespace: cmp.Or(o.Namespace, Namespace), Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(c, o.Values, release, capabilities)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrValues, err)
	}
	if err := meaning(values); err != nil {
		return nil, nil, err
	}
	if r, ok := values["Release"].(map[string]any); ok {
		r["Service"] = Service
	}
	rendered, err := engine.Render(c, values)
	if err != nil {
		return nil, nil, fmt.Errorf("render the chart: %w", err)
	}
	for _, crd := range c.CRDObjects() {
		definitions = append(definitions, File{path.Base(crd.Filename), crd.File.Data})
	}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		text := []byte(strings.TrimSpace(rendered[name]) + "\n")
		if path.Ext(name) == ".yaml" && len(text) > 1 {
			files = append(files, File{path.Base(name), text})
		}
	}
	return definitions, files, nil
}

// Check compares values with the chart's schema, and with what the programs make of them; what is left out may be the cluster's to
// say, or the last installation's. Its error names the value that is wrong.
func Check(values map[string]any) error {
	c, err := load()
	if err != nil {
		return err
	}
	all, err := chartutil.ToRenderValues(c, copied(values), chartutil.ReleaseOptions{}, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrValues, err)
	}
	return meaning(all)
}

func kubeVersion(text string) (chartutil.KubeVersion, error) {
	v, err := chartutil.ParseKubeVersion(text)
	if err != nil {
		return chartutil.KubeVersion{}, fmt.Errorf("the API server's version %q: %w", text, err)
	}
	return *v, nil
}

// Objects decodes files, and sorts the objects in the order in which they must be
// applied.
func Objects(files ...File) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for _, file := range files {
		for document := range bytes.SplitSeq(file.Text, []byte("\n---\n")) {
			object := &unstructured.Unstructured{}
			if err := utilyaml.Unmarshal(document, &object.Object); err != nil {
				return nil, fmt.Errorf("%s: %w", file.Name, err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, object)
			}
		}
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return cmp.Compare(rank(a), rank(b)) })
	return objects, nil
}

// Alerts returns the PrometheusRule among objects, whose kind not every cluster has; nil
// when there is none.
func Alerts(objects []*unstructured.Unstructured) *unstructured.Unstructured {
	for _, o := range objects {
		if o.GetKind() == "PrometheusRule" {
			return o
		}
	}
	return nil
}

// rank puts before an object what it needs.
func rank(o *unstructured.Unstructured) int {
	order := [...]string{"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding",
		"Role", "RoleBinding", "Mesh", "Service", "PodDisruptionBudget", "Deployment", "DaemonSet"}
	if i := slices.Index(order[:], o.GetKind()); i >= 0 {
		return i
	}
	return len(order)
}
