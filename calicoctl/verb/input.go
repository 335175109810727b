package verb

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
)

// defaultNamespace is where namespaced resources go that name none.
const defaultNamespace = "default"

// input are the flags that name files.
type input struct {
	files     []string
	recursive bool
	skipEmpty bool
}

func (in *input) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&in.files, "filename", "f", nil, "file or directory with resources, YAML or JSON; - reads standard input")
	cmd.Flags().BoolVarP(&in.recursive, "recursive", "R", false, "go into directories below the one given")
	cmd.Flags().BoolVar(&in.skipEmpty, "skip-empty", false, "no error if there is nothing in the files")
}

// read decodes everything that the flags name. Nothing is returned if anything is wrong, so that nothing is half done.
func (in *input) read(stdin io.Reader, namespace string) ([]api.Object, error) {
	if len(in.files) == 0 {
		return nil, errors.New("no file is given; use -f FILE, or -f - for standard input")
	}
	var objects []api.Object
	for _, f := range in.files {
		paths, err := in.expand(f)
		if err != nil {
			return nil, fmt.Errorf("failed to execute command: %w", err)
		}
		for _, p := range paths {
			body, err := readFile(p, stdin)
			if err != nil {
				return nil, fmt.Errorf("failed to execute command: %w", err)
			}
			found, err := api.Decode(body)
			if err != nil {
				return nil, fmt.Errorf("failed to execute command: %s: %w", p, err)
			}
			objects = append(objects, found...)
		}
	}
	for _, o := range objects {
		if api.KindOf(o).Namespaced && o.GetNamespace() == "" {
			o.SetNamespace(or(namespace, defaultNamespace))
		}
	}
	if len(objects) == 0 && !in.skipEmpty {
		return nil, errors.New("No resources specified") //nolint:revive,staticcheck // the words that scripts look for
	}
	return objects, nil
}

// expand lists the files that an argument stands for, in the order of their names.
func (in *input) expand(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return []string{path}, err
	}
	var out []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != path && !in.recursive:
			return fs.SkipDir
		case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(p))):
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

func readFile(path string, stdin io.Reader) ([]byte, error) {
	f, err := openFile(path, stdin)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// openFile opens a file, or what "-" stands for.
func openFile(path string, stdin io.Reader) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(stdin), nil
	}
	return os.Open(path)
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
