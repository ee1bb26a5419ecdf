// Package schemas says what an API server would refuse of an object by the schema of its
// kind, without one: by the CustomResourceDefinitions that are in the program, Heddle's own
// and those of the Gateway API, and with the API server's own code. Of other kinds it says
// nothing, and it compares an object with no other, nor with what it was.
//
// It is the command line's: Kubernetes' libraries for this are 8 MB of a program, which
// neither an operator nor a waypoint needs to be safe.
//
// Methods may be called from any goroutine.
package schemas

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/manifests"
)

// maxRefusals bounds what is said of one object.
const maxRefusals = 100

// Schemas are those of the kinds that have been asked about: what makes one of a definition
// takes up to a tenth of a second.
type Schemas struct {
	mu sync.Mutex
	of map[string]*kind // by version and name; guarded by mu
}

// New returns Schemas that have read nothing yet.
func New() *Schemas { return &Schemas{of: map[string]*kind{}} }

// kind is how an API server holds the schema of one.
type kind struct {
	values     validation.SchemaValidator
	structural *schema.Structural
	rules      *cel.Validator
}

// definition returns the file with the definition of a kind; "" of one that has none here.
func definition(apiVersion, kind string) (files fs.FS, path string) {
	gateway := map[string]string{"HTTPRoute": "httproutes", "GRPCRoute": "grpcroutes", "TLSRoute": "tlsroutes", "TCPRoute": "tcproutes", "ReferenceGrant": "referencegrants",
		"Gateway": "gateways", "GatewayClass": "gatewayclasses"}
	own := map[string]string{"AuthorizationPolicy": "authorizationpolicies", "Mesh": "meshes", "PeerAuthentication": "peerauthentications", "Workload": "workloads"}
	switch {
	case apiVersion == "heddle.dev/v1alpha1" && own[kind] != "":
		return manifests.Chart, "heddle/crds/heddle.dev_" + own[kind] + ".yaml"
	case apiVersion == "gateway.networking.k8s.io/v1" && gateway[kind] != "":
		return manifests.GatewayAPI, "gateway-api/gateway.networking.k8s.io_" + gateway[kind] + ".yaml"
	default:
		return nil, ""
	}
}

// Refusals returns what an API server would refuse of an object, as it is in JSON. The error
// says that the object is none, or that a definition of this program is wrong.
func (s *Schemas) Refusals(object map[string]any) ([]Refusal, error) {
	apiVersion, _ := object["apiVersion"].(string)
	name, _ := object["kind"].(string)
	k, err := s.kind(apiVersion, name)
	if err != nil || k == nil {
		return nil, err
	}
	encoded, err := json.Marshal(object) // to change a copy, whose numbers are as an API server's
	if err != nil {
		return nil, fmt.Errorf("encode the object: %w", err)
	}
	var own map[string]any
	if err := utiljson.Unmarshal(encoded, &own); err != nil {
		return nil, fmt.Errorf("decode the object: %w", err)
	}
	return k.refusals(own), nil
}

func (s *Schemas) kind(apiVersion, name string) (*kind, error) {
	id := apiVersion + " " + name
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, known := s.of[id]; known {
		return k, nil
	}
	files, path := definition(apiVersion, name)
	if path == "" {
		return nil, nil
	}
	content, err := fs.ReadFile(files, path)
	if err != nil {
		return nil, fmt.Errorf("read the definition of %s: %w", id, err)
	}
	k, err := parse(content, apiVersion)
	if err != nil {
		return nil, fmt.Errorf("read the definition of %s: %w", id, err)
	}
	s.of[id] = k
	return k, nil
}

// parse makes of a definition what an API server does.
func parse(content []byte, apiVersion string) (*kind, error) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(content, &crd); err != nil {
		return nil, err
	}
	for i := range crd.Spec.Versions {
		version := &crd.Spec.Versions[i]
		if crd.Spec.Group+"/"+version.Name != apiVersion {
			continue
		}
		var properties apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &properties, nil); err != nil {
			return nil, err
		}
		values, _, err := validation.NewSchemaValidator(&properties)
		if err != nil {
			return nil, err
		}
		structural, err := schema.NewStructural(&properties)
		if err != nil {
			return nil, err
		}
		return &kind{values, structural, cel.NewValidator(structural, true, celconfig.PerCallLimit)}, nil
	}
	return nil, fmt.Errorf("it has no %s", apiVersion)
}

// refusals changes the object: an API server, too, judges what is left of it, with its defaults.
func (k *kind) refusals(object map[string]any) (all []Refusal) {
	pruning.Prune(object, k.structural, true)
	defaulting.PruneNonNullableNullsWithoutDefaults(object, k.structural)
	defaulting.Default(object, k.structural)
	errs := validation.ValidateCustomResource(nil, object, k.values)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, k.structural, object)...)
	for _, err := range errs {
		all = append(all, worded(err))
	}
	if !misshapen(errs) {
		broken, _ := fitted(k.rules, []any{object}).Validate(context.Background(), nil, k.structural, object, nil, celconfig.RuntimeCELCostBudget)
		for _, err := range broken {
			all = append(all, ruled(err))
		}
	}
	if len(all) > maxRefusals {
		more := len(all) - maxRefusals
		all = append(all[:maxRefusals], Refusal{Text: fmt.Sprintf("has %d more problems", more), Remedy: "mend those that are named first"})
	}
	return all
}

// misshapen says whether an API server would not run the rules on the object any more.
func misshapen(errs field.ErrorList) bool {
	for _, err := range errs {
		switch err.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return true
		}
	}
	return false
}

// shown is a value as it is in JSON, shortly.
func shown(value any) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(value) != nil {
		return "the value"
	}
	text := []rune(string(bytes.TrimSpace(b.Bytes())))
	if len(text) > 60 {
		return string(text[:60]) + "..."
	}
	return string(text)
}
