// Package keyed has the names of objects, and lists of objects sorted by them. All
// of it is pure, and leaves the lists that it is given as they are.
package keyed

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

// Key names an object: a namespace and a name in it. It is comparable.
type Key struct{ Namespace, Name string }

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Self returns the key of whatever it is a part of.
func (k Key) Self() Key { return k }

// Compare orders keys by namespace, then by name: -1, 0 or +1.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, other.Namespace), cmp.Compare(k.Name, other.Name))
}

// Check says what is wrong with a key, or nil.
func (k Key) Check() error {
	if k.Namespace == "" || k.Name == "" {
		return errors.New("namespace or name is empty")
	}
	if strings.Contains(k.Namespace, "/") || strings.Contains(k.Name, "/") {
		return errors.New(`namespace or name has a "/" in it`) // Key.String would be ambiguous
	}
	return nil
}

// Object is a pointer to what has a key.
type Object[T any] interface {
	*T
	Self() Key
}

// SortedKeys returns keys sorted, each once.
func SortedKeys(keys []Key) []Key {
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, Key.Compare)
	return slices.Compact(sorted)
}

// Ascending reports whether SortedKeys would change nothing.
func Ascending(keys []Key) bool {
	for i := 1; i < len(keys); i++ {
		if keys[i-1].Compare(keys[i]) >= 0 {
			return false
		}
	}
	return true
}

// Has reports whether a key is among sorted ones.
func Has(sorted []Key, key Key) bool {
	_, ok := slices.BinarySearchFunc(sorted, key, Key.Compare)
	return ok
}

// Sort returns objects in order.
func Sort[T any, P Object[T]](objects []P) []P {
	compare := func(a, b P) int { return a.Self().Compare(b.Self()) }
	if slices.IsSortedFunc(objects, compare) {
		return objects
	}
	sorted := slices.Clone(objects)
	slices.SortStableFunc(sorted, compare)
	return sorted
}

// place returns where a key is, or would be, in a sorted list.
func place[T any, P Object[T]](sorted []P, key Key) (int, bool) {
	return slices.BinarySearchFunc(sorted, key, func(o P, key Key) int { return o.Self().Compare(key) })
}

// Find returns the object of a key in a sorted list; nil when there is none.
func Find[T any, P Object[T]](sorted []P, key Key) P {
	i, ok := place(sorted, key)
	if !ok {
		return nil
	}
	return sorted[i]
}

// Without returns those keys, sorted, that no object of a sorted list has.
func Without[T any, P Object[T]](keys []Key, sorted []P) []Key {
	return slices.DeleteFunc(SortedKeys(keys), func(k Key) bool { return Find(sorted, k) != nil })
}

// Splice returns a sorted list with some objects put into it, in place of those of
// the same keys, and others taken out. All lists are sorted.
func Splice[T any, P Object[T]](base, put []P, gone []Key) []P {
	if len(put) == 0 && len(gone) == 0 {
		return base
	}
	if len(base) == 0 {
		return slices.Clone(put)
	}
	next := make([]P, 0, len(base)+len(put))
	for len(put) > 0 || len(gone) > 0 {
		var key Key
		if len(put) > 0 && (len(gone) == 0 || put[0].Self().Compare(gone[0]) <= 0) {
			key = put[0].Self()
		} else {
			key = gone[0]
		}
		at, is := place(base, key)
		next, base = append(next, base[:at]...), base[at:]
		if is {
			base = base[1:]
		}
		if len(put) > 0 && put[0].Self() == key {
			next, put = append(next, put[0]), put[1:]
		}
		if len(gone) > 0 && gone[0] == key {
			gone = gone[1:]
		}
	}
	return slices.Clip(append(next, base...))
}

// Difference returns what turns one sorted list into another: objects that are new or
// not equal, and the keys of those that are gone.
func Difference[T any, P Object[T]](was, is []P, equal func(a, b P) bool) (put []P, gone []Key) {
	for _, object := range is {
		for len(was) > 0 && was[0].Self().Compare(object.Self()) < 0 {
			gone, was = append(gone, was[0].Self()), was[1:]
		}
		if len(was) > 0 && was[0].Self() == object.Self() {
			same := was[0] == object || equal(was[0], object)
			if was = was[1:]; same {
				continue
			}
		}
		put = append(put, object)
	}
	for _, object := range was {
		gone = append(gone, object.Self())
	}
	return put, gone
}

// In returns the part of a sorted list that is of a namespace.
func In[T any, P Object[T]](namespace string, sorted []P) []P {
	first, _ := place(sorted, Key{Namespace: namespace})
	after, _ := place(sorted, Key{Namespace: namespace + "\x00"})
	return sorted[first:after]
}

// Copies returns pointers to copies of objects.
func Copies[T any](objects []T) []*T {
	cloned := slices.Clone(objects)
	all := make([]*T, len(cloned))
	for i := range cloned {
		all[i] = &cloned[i]
	}
	return all
}
