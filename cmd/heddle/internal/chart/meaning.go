package chart

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"helm.sh/helm/v3/pkg/chartutil"

	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/tune"
	"github.com/heddle-mesh/heddle/operator/jwtauthority"
)

// meaning looks at what the schema has no words for, by what the programs themselves read it
// with: an operator that refuses a value at its start is found by nobody who tries a change
// with --dry-run. The error matches ErrValues, and names the value.
func meaning(values chartutil.Values) error {
	of := func(path string) any {
		value, err := values.PathValue("Values." + path)
		if err != nil {
			return nil // there is none
		}
		return value
	}
	if create, _ := of("mesh.create").(bool); create {
		if name, ok := of("mesh.trustDomain").(string); ok {
			if _, err := spiffeid.TrustDomainFromString(name); err != nil {
				return wrong("mesh.trustDomain", name, err)
			}
		}
		ranges, _ := of("mesh.clusterRanges").([]any)
		for i, value := range ranges {
			if _, err := netip.ParsePrefix(fmt.Sprint(value)); err != nil {
				return wrong(fmt.Sprintf("mesh.clusterRanges[%d]", i), value, err)
			}
		}
	}
	if text, ok := of("operator.jwtTTL").(string); ok {
		ttl, err := time.ParseDuration(text)
		if err == nil {
			err = jwtauthority.Times{TTL: ttl}.Check()
		}
		if err != nil {
			return wrong("operator.jwtTTL", text, err)
		}
	}
	if rules, ok := of("waypoint.traces.sample").(string); ok {
		if _, err := sample.Parse(tune.List(rules)); err != nil {
			return wrong("waypoint.traces.sample", rules, err)
		}
	}
	if endpoint, ok := of("waypoint.traces.endpoint").(string); ok && endpoint != "" {
		if err := sample.CheckEndpoint(endpoint); err != nil {
			return wrong("waypoint.traces.endpoint", endpoint, err)
		}
	}
	bounds, err := values.Table("Values.waypoint.bounds")
	if err != nil {
		return nil // as above
	}
	for name, value := range bounds {
		// Numbers of a file are floats, which are written without an exponent.
		if number, ok := value.(float64); ok {
			value = strings.TrimSuffix(fmt.Sprintf("%f", number), ".000000")
		}
		if _, err := tune.ParseBounds([]string{fmt.Sprintf("%s=%v", name, value)}); err != nil {
			return wrong("waypoint.bounds."+name, value, err)
		}
	}
	return nil
}

func wrong(path string, value any, err error) error {
	return fmt.Errorf("%w: %s: %v: %w", ErrValues, path, value, err)
}
