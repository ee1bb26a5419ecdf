// Package folder reads a folder of YAML, strictly, and within bounds: which kinds
// of objects may be in it, and what becomes of them, its caller says. It compiles
// nothing and watches nothing.
//
// Load may be called from any goroutine.
package folder

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/kube/problem"
)

// The bounds of a folder. They are far above what a mesh needs, and keep a
// mistake (a folder of logs, an endless file) from taking the operator's memory.
const (
	MaxFiles     = 10_000
	MaxFileSize  = 4 << 20   // bytes
	MaxTotalSize = 256 << 20 // bytes
	MaxDepth     = 8         // folders below the folder
)

// Kind is one of the kinds that a folder may hold.
type Kind struct {
	APIVersion, Name string
	// Namespaced kinds need metadata.namespace, others must not have one.
	Namespaced bool
	// Spec has to be given, as an API server wants it: without one, an object would be in force
	// of which the rest was lost.
	Spec bool
	// Read decodes a document and keeps the object, or returns nil.
	Read func(doc *Document) metav1.Object
}

// Load reads the file from of fsys, or every .yaml, .yml and .json file of the
// folder from and of the folders below it, in order of their names, and has every
// document in them read by its kind. Names that begin with "." are left out, and so are symbolic links to
// folders; links to files are read as far as fsys follows them. No more than
// maxFiles, of maxTotal bytes together, are read.
//
// It returns a hash of what was read, in hexadecimal, or every problem that it
// finds, joined.
func Load(fsys fs.FS, from string, kinds []Kind, maxFiles int, maxTotal int64) (digest string, err error) {
	l := newLoader(kinds)
	l.fsys, l.maxFiles, l.maxTotal = fsys, maxFiles, maxTotal
	return l.load(from)
}

// LoadDir is Load of the file, or folder, from of a folder of the file system, of MaxTotalSize at
// most. Problems name it. Symbolic links that lead out of it are refused.
func LoadDir(dir, from string, kinds []Kind, maxFiles int) (digest string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		if info, statErr := os.Stat(dir); statErr == nil && !info.IsDir() {
			return "", fmt.Errorf("open configuration folder: %s is a file; remedy: name the folder that it is in", dir)
		}
		return "", fmt.Errorf("open configuration folder: %w", err)
	}
	l := newLoader(kinds)
	l.fsys, l.dir, l.maxFiles, l.maxTotal = root.FS(), dir, maxFiles, MaxTotalSize
	digest, err = l.load(from)
	return digest, errors.Join(err, root.Close())
}

// Read is Load of what r has, as one file that problems call name.
func Read(r io.Reader, name string, kinds []Kind) (digest string, err error) {
	content, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	l := newLoader(kinds)
	if len(content) > MaxFileSize {
		l.fileProblem(name, fmt.Sprintf("is larger than %d bytes", MaxFileSize), "give what is in it as several files")
	} else {
		l.decode(name, content)
	}
	return l.digested(nil)
}

func (l *loader) load(from string) (digest string, err error) {
	if err = fs.WalkDir(l.fsys, from, l.visit); err != nil {
		err = fmt.Errorf("read configuration folder: %w", err)
		if l.dir != "" { // the error itself has the path inside
			err = fmt.Errorf("%s: %w", l.dir, err)
		}
	}
	return l.digested(err)
}

func newLoader(kinds []Kind) *loader {
	return &loader{kinds: kinds, digest: sha256.New(), seen: map[string]problem.Origin{}}
}

// digested is what there is to return when all was read that can be.
func (l *loader) digested(err error) (string, error) {
	if err := errors.Join(err, problem.Join(l.problems)); err != nil {
		return "", err
	}
	return hex.EncodeToString(l.digest.Sum(nil)), nil
}

type loader struct {
	fsys     fs.FS
	dir      string // for problems; "" when not known
	maxFiles int
	maxTotal int64 // bytes
	kinds    []Kind
	problems []*problem.Problem
	seen     map[string]problem.Origin // by kind, namespace and name
	digest   hash.Hash
	files    int
	bytes    int64
}

func (l *loader) visit(name string, entry fs.DirEntry, err error) error {
	switch {
	case err != nil && name == ".":
		return err
	case err != nil:
		l.fileProblem(name, fmt.Sprintf("cannot be read: %v", err), "")
		return nil
	case name != "." && strings.HasPrefix(entry.Name(), "."):
		return skip(entry)
	case entry.IsDir():
		if name != "." && strings.Count(name, "/") >= MaxDepth {
			l.fileProblem(name, fmt.Sprintf("is more than %d folders deep", MaxDepth), "move it up")
			return fs.SkipDir
		}
		return nil
	}
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json":
	default:
		return nil
	}
	if l.files++; l.files > l.maxFiles {
		l.fileProblem(name, fmt.Sprintf("is more than %d files", l.maxFiles), "put several objects into one file, separated by ---")
		return fs.SkipAll
	}
	content, ok := l.readFile(name)
	if !ok {
		return nil
	}
	if l.bytes += int64(len(content)); l.bytes > l.maxTotal {
		l.fileProblem(name, fmt.Sprintf("makes the folder larger than %d bytes", l.maxTotal), "take out what is not configuration")
		return fs.SkipAll
	}
	l.decode(name, content)
	if len(l.problems) >= MaxProblems {
		l.fileProblem(name, "is the last file that was read: there are too many problems", "")
		return fs.SkipAll
	}
	return nil
}

func (l *loader) decode(name string, content []byte) {
	// Lengths keep the digest of two files apart from that of one with the
	// bytes of both. A hash does not return errors.
	fmt.Fprintf(l.digest, "%d %s %d ", len(name), name, len(content))
	l.digest.Write(content)
	l.decodeFile(name, content)
}

func skip(entry fs.DirEntry) error {
	if entry.IsDir() {
		return fs.SkipDir
	}
	return nil
}

func (l *loader) fileProblem(name, text, remedy string) {
	l.problems = append(l.problems, &problem.Problem{Origin: problem.Origin{Folder: l.dir, File: name}, Text: text, Remedy: remedy, Reason: problem.Unreadable})
}

// readFile returns a file's content, or reports why it cannot be had.
func (l *loader) readFile(name string) ([]byte, bool) {
	info, err := fs.Stat(l.fsys, name) // of the file that a link leads to
	if err != nil {
		l.fileProblem(name, fmt.Sprintf("cannot be read: %v", err), "links must stay inside the folder and lead to a file")
		return nil, false
	}
	if info.IsDir() {
		return nil, false // a link to a folder
	}
	if !info.Mode().IsRegular() {
		l.fileProblem(name, "is not a regular file", "take it out of the folder")
		return nil, false
	}
	content, err := l.readBounded(name)
	if err != nil {
		l.fileProblem(name, fmt.Sprintf("cannot be read: %v", err), "")
		return nil, false
	}
	if len(content) > MaxFileSize {
		l.fileProblem(name, fmt.Sprintf("is larger than %d bytes", MaxFileSize), "split it into several files")
		return nil, false
	}
	return content, true
}

func (l *loader) readBounded(name string) ([]byte, error) {
	f, err := l.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	return content, errors.Join(err, f.Close())
}
