// Package folders reads what a command is given of YAML, a folder or a file, and says what
// is wrong with it: what the operator would of a folder, and what an API server would, by the
// schemas of the kinds. It compiles nothing.
//
// Functions may be called from any goroutine.
package folders

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/schemas"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folder"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
)

// ErrInvalid is matched by errors about what a command was given of YAML: it cannot be read,
// or is not valid. What the command is to find out is not known then.
var ErrInvalid = errors.New("what was given of YAML cannot be read, or is not valid")

// Invalid has an error match ErrInvalid, and say what it did; nil stays nil.
func Invalid(err error) error {
	if err == nil {
		return nil
	}
	return invalid{err}
}

// Refused is an error with all of the problems that says what is refused. It matches ErrInvalid.
func Refused(what string, problems []*kube.Problem) error {
	return Invalid(fmt.Errorf("%s:\n%w", what, problem.Join(problems)))
}

type invalid struct{ error }

func (i invalid) Unwrap() error        { return i.error }
func (i invalid) Is(target error) bool { return target == ErrInvalid }

// Load reads a folder and the folders below it, or a file as a folder with nothing else in it.
// The objects are those that an operator would read; an API server would refuse what Refusals
// say of them. Errors match ErrInvalid.
func Load(path string) (*kube.Objects, Refusals, error) { return load(path, schemas.New()) }

// Stdin stands for standard input where a command is to be given files, as kubectl has it.
const Stdin = "-"

// NameOf is how people are told of a path.
func NameOf(path string) string {
	if path == Stdin {
		return "standard input"
	}
	return path
}

// Named is Load of a path, or of in where that is Stdin.
func Named(in io.Reader, path string) (*kube.Objects, Refusals, error) {
	if path != Stdin {
		return Load(path)
	}
	return loadBy(schemas.New(), func(look kube.Look) (*kube.Objects, error) { return kube.LoadReader(in, NameOf(path), look) })
}

// Once says that Stdin is among what is named more than once, which has nothing the second time. The
// error matches reach.ErrUsage.
func Once(named ...string) error {
	count := 0
	for _, path := range named {
		if path == Stdin {
			count++
		}
	}
	if count > 1 {
		return fmt.Errorf("%w: standard input is named %d times with %q, and can be read once: write one of them to a file", reach.ErrUsage, count, Stdin)
	}
	return nil
}

func load(path string, by *schemas.Schemas) (*kube.Objects, Refusals, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, Invalid(fmt.Errorf("read objects: %w", err))
	}
	return loadBy(by, func(look kube.Look) (*kube.Objects, error) {
		switch {
		case info.IsDir():
			return kube.LoadDir(path, look)
		case !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			return nil, fmt.Errorf("read objects: %s is not named .yaml, .yml or .json; remedy: name it so", path)
		}
		return kube.LoadFile(path, look)
	})
}

func loadBy(by *schemas.Schemas, read func(kube.Look) (*kube.Objects, error)) (*kube.Objects, Refusals, error) {
	look := &looking{schemas: by}
	look.SetLimit(runtime.GOMAXPROCS(0))
	objects, err := read(look.at)
	if err = cmp.Or(err, look.Wait()); err != nil {
		return nil, nil, Invalid(err)
	}
	return objects, look.refused(), nil
}

// looking asks the schemas about each document that is read: of several at once, as the rules
// of a policy take a thousand times as long as to read it.
type looking struct {
	errgroup.Group
	schemas *schemas.Schemas
	found   []*Refusals // by document, in their order
}

func (l *looking) at(doc *folder.Document) {
	own := &Refusals{}
	l.found = append(l.found, own)
	l.Go(func() error {
		found, err := l.schemas.Refusals(doc.Plain())
		for _, r := range found {
			*own = append(*own, refusal{doc.Invalid(r.Field, r.Text, r.Remedy), r.Whole})
		}
		return err
	})
}

// refused is what was found, within the bounds of what is said of a folder.
func (l *looking) refused() (all Refusals) {
	for _, of := range l.found {
		if len(all) < folder.MaxProblems {
			all = append(all, *of...)
		}
	}
	return all
}

// Refusals are what an API server would refuse of the objects of a folder.
type Refusals []refusal

type refusal struct {
	*kube.Problem
	whole bool
}

// Beyond joins to an error about the same folder, which may be nil, what its problems are not
// about: these have more to say. What it returns matches ErrInvalid, or is nil.
func (all Refusals) Beyond(err error) error {
	return Invalid(errors.Join(err, problem.Join(all.besides(problem.All(err)))))
}

// Among adds to problems what they are not about.
func (all Refusals) Among(problems []*kube.Problem) []*kube.Problem {
	added := slices.Concat(problems, all.besides(problems))
	problem.Sort(added)
	return added
}

func (all Refusals) besides(problems []*kube.Problem) (more []*kube.Problem) {
	for _, r := range all {
		same := func(p *kube.Problem) bool { return p.Ref == r.Ref && p.Field == r.Field }
		told := func(p *kube.Problem) bool { return p.Ref == r.Ref && strings.Contains(p.Text, " "+r.Field+": ") } // a route's are one text
		if r.whole && slices.ContainsFunc(problems, same) || !r.whole && (r.Covered(problems) || slices.ContainsFunc(problems, told)) {
			continue
		}
		more = append(more, r.Problem)
	}
	return more
}
