package spire

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

// usable returns base and what can be trusted beside it, up to a limit, as try says of all
// together. The error names those that cannot.
func usable(base, more []*x509.Certificate, limit int, try func([]*x509.Certificate) error) ([]*x509.Certificate, error) {
	all := slices.Clone(base)
	var names []string
	var first error
	for _, root := range more {
		var err error
		switch {
		case len(all) >= limit:
			err = fmt.Errorf("nodes take %d at most", identity.MaxBundle)
		case !identity.IsRoot(root):
			err = errors.New("it is not a CA's that is signed by its own key")
		default:
			err = try(union(all, root))
		}
		if errors.Is(err, rotation.ErrRefused) {
			return base, err // whatever the root is
		}
		if err == nil {
			all = union(all, root)
			continue
		}
		first = cmp.Or(first, err)
		names = append(names, root.SerialNumber.Text(16))
	}
	if first == nil {
		return all, nil
	}
	return all, fmt.Errorf("%d roots of SPIRE's bundle cannot be trusted, with the serials %s: %w; remedy: take them out of SPIRE's bundle", len(names), strings.Join(names[:min(len(names), 8)], ", "), first)
}

// own are the roots that are trusted without roots.crt, which is people's.
func own(k *rotation.Keyring) []*x509.Certificate { return minus(k.Signing.Roots(), k.Further()) }

func serials(certs []*x509.Certificate) []string {
	var all []string
	for _, c := range certs {
		all = append(all, c.SerialNumber.Text(16))
	}
	return all
}

func contains(certs []*x509.Certificate, one *x509.Certificate) bool {
	return slices.ContainsFunc(certs, one.Equal)
}

func minus(certs, others []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return contains(others, c) })
}

func union(certs []*x509.Certificate, others ...*x509.Certificate) []*x509.Certificate {
	all := slices.Clone(certs)
	for _, c := range others {
		if !contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}
