package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// bootModules reach the machine's files and the ports to it; everything else is loaded from there when it is needed.
var bootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// loadOrder gives the files of the modules, relative to the release's directory, each after those it needs, as modules.dep
// has them. What is part of the kernel itself is left out.
func loadOrder(dep, builtin string, modules ...string) ([]string, error) {
	needs := map[string]string{} // module's name: its line of modules.dep
	for line := range strings.Lines(dep) {
		if file, _, ok := strings.Cut(line, ":"); ok {
			needs[moduleName(file)] = line
		}
	}
	inside := map[string]bool{}
	for line := range strings.Lines(builtin) {
		inside[moduleName(strings.TrimSpace(line))] = true
	}
	var order []string
	for _, m := range modules {
		if inside[m] {
			continue
		}
		line, ok := needs[m]
		if !ok {
			return nil, fmt.Errorf("the kernel has no module %s", m)
		}
		file, others, _ := strings.Cut(line, ":")
		// modprobe, too, loads a line from its end: depmod writes first what needs the rest
		for _, f := range slices.Backward(append([]string{file}, strings.Fields(others)...)) {
			if !slices.Contains(order, f) {
				order = append(order, f)
			}
		}
	}
	return order, nil
}

// moduleName is the kernel's name of a module in a file such as kernel/fs/9p/9p.ko.xz.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModule gives a module as the kernel takes it: no program in the guest's first files can uncompress all that
// distributions use.
func readModule(ctx context.Context, file string) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	program, ok := compression(content)
	if !ok {
		return content, nil
	}
	var out bytes.Buffer
	if err := expand(ctx, program, content, &out); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out.Bytes(), nil
}

// bootOrder reads what loadOrder needs of the kernel's own lists.
func (k kernel) bootOrder() ([]string, error) {
	dep, err1 := os.ReadFile(filepath.Join(k.modules(), "modules.dep"))
	builtin, err2 := os.ReadFile(filepath.Join(k.modules(), "modules.builtin"))
	if err := errors.Join(err1, err2); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; remove %s, so that it is fetched again", err, k.dir)
		}
		return nil, err
	}
	return loadOrder(string(dep), string(builtin), bootModules...)
}
