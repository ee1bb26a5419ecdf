package schemas

import (
	"fmt"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Refusal is one thing that an API server would refuse.
type Refusal struct {
	// Field is its path, "spec.rules[0].from"; "" for the whole object.
	Field        string
	Text, Remedy string
	// Whole says that it is about the field as one, how many entries it has: what is wrong
	// with a part of it is something else.
	Whole bool
}

// worded says in this program's words what Kubernetes' say about a value.
func worded(err *field.Error) Refusal {
	r := Refusal{Field: fieldOf(err.Field)}
	number := firstNumber(err.Detail)
	switch err.Type {
	case field.ErrorTypeRequired:
		r.Text, r.Remedy = "is missing", "write it"
	case field.ErrorTypeTooMany:
		r.Text, r.Remedy, r.Whole = fmt.Sprintf("has %v entries, %s are possible", err.BadValue, number), "take some out, or write a second object with them", true
		if _, counted := err.BadValue.(int); !counted {
			r.Text = "has more than " + number + " entries"
		}
	case field.ErrorTypeTooLong:
		r.Text, r.Remedy = "is longer than "+number+" bytes", "write less"
	case field.ErrorTypeDuplicate:
		r.Text, r.Remedy = shown(err.BadValue)+" is given twice", "keep one of them"
	case field.ErrorTypeNotSupported:
		r.Text, r.Remedy = shown(err.BadValue)+" is not one of its values", "write "+alternatives(err.Detail)
	default:
		invalid(&r, err)
	}
	return r
}

// invalid is about a value that a pattern or a bound refuses: Kubernetes says which in a
// sentence of its own, behind the field's name.
func invalid(r *Refusal, err *field.Error) {
	_, bound, found := strings.Cut(err.Detail, " in body ")
	if !found {
		bound = err.Detail
	}
	number := firstNumber(bound)
	switch {
	case strings.HasPrefix(bound, "should match "):
		r.Text, r.Remedy = shown(err.BadValue)+" has not the form of this field", "write what matches "+strings.TrimPrefix(bound, "should match ")
	case strings.HasPrefix(bound, "should be less than or equal to "):
		r.Text, r.Remedy = shown(err.BadValue)+" is more than "+number, "write at most "+number
	case strings.HasPrefix(bound, "should be greater than or equal to "):
		r.Text, r.Remedy = shown(err.BadValue)+" is less than "+number, "write at least "+number
	case strings.HasPrefix(bound, "should have at least "):
		r.Text, r.Remedy, r.Whole = "has fewer than "+number+" entries", "write at least "+number+", or leave the field out", true
	case strings.HasPrefix(bound, "should be at least "):
		r.Text, r.Remedy = shown(err.BadValue)+" is shorter than "+number+" characters", "write at least "+number+", or leave the field out"
	default:
		r.Text, r.Remedy = "an API server refuses it", bound
	}
}

// ruled is about a rule, whose message says what to do.
func ruled(err *field.Error) Refusal {
	return Refusal{Field: fieldOf(err.Field), Text: "an API server refuses it", Remedy: err.Detail}
}

// fieldOf writes a field's path as this program does: "" for the whole object, and labels,
// the only keys that people choose, in brackets.
func fieldOf(field string) string {
	if field == "<nil>" {
		return ""
	}
	if in, label, found := strings.Cut(field, ".matchLabels."); found { // which has dots itself
		return in + ".matchLabels[" + label + "]"
	}
	return field
}

func firstNumber(text string) string {
	return regexp.MustCompile(`-?\d+`).FindString(text)
}

// alternatives makes `A, B or C` of `supported values: "A", "B", "C"`.
func alternatives(detail string) string {
	words := strings.Split(strings.TrimPrefix(detail, "supported values: "), ", ")
	for i, word := range words {
		words[i] = strings.Trim(word, `"`)
	}
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
