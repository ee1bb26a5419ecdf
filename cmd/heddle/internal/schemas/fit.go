package schemas

import (
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
)

// fitted is a validator whose schemas have no properties but those that the values have. The
// library copies all properties of a schema each time that a rule looks at one: ours have forty,
// most of them only there to be refused, and rules that look at each. What a value has not is
// absent to a rule, whatever the schema says of it.
func fitted(v *cel.Validator, values []any) *cel.Validator {
	if v == nil {
		return nil
	}
	own := *v
	own.Schema = fit(v.Schema, values)
	own.Items = fitted(v.Items, elements(values))
	own.Properties = make(map[string]cel.Validator, len(v.Properties))
	for name := range v.Properties {
		if below := under(values, name); len(below) > 0 {
			property := v.Properties[name]
			own.Properties[name] = *fitted(&property, below)
		}
	}
	return &own
}

func fit(s *schema.Structural, values []any) *schema.Structural {
	if s == nil {
		return nil
	}
	own := *s
	own.Items = fit(s.Items, elements(values))
	if s.Properties == nil {
		return &own
	}
	own.Properties = map[string]schema.Structural{} // not nil: it is an object
	for name := range s.Properties {
		if below := under(values, name); len(below) > 0 {
			property := s.Properties[name]
			own.Properties[name] = *fit(&property, below)
		}
	}
	return &own
}

// elements are those of all values that are lists.
func elements(values []any) (all []any) {
	for _, value := range values {
		if list, ok := value.([]any); ok {
			all = append(all, list...)
		}
	}
	return all
}

// under are the values of one field of all that are objects.
func under(values []any, name string) (all []any) {
	for _, value := range values {
		if object, ok := value.(map[string]any); ok {
			if field, has := object[name]; has {
				all = append(all, field)
			}
		}
	}
	return all
}
