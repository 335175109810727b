// Package install puts the CNI plugins and their configuration where a container runtime looks for them. Each file is
// replaced whole or not at all, and the configuration comes last: from the moment it is there the runtime calls the plugins.
package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Config says what goes where.
type Config struct {
	From    string // directory of the programs to install
	Bin     string // the runtime's directory of plugins
	Conf    string // the runtime's directory of configurations
	Name    string // of the configuration's file
	Old     string // name of a configuration's file that goes, if not empty
	Content []byte // of the configuration; see Conflist
	Skip    []string
	Update  Update
}

// Update says which programs that are there already are replaced.
type Update uint8

// The choices. Plugins that others need too, such as portmap, may be newer than ours where somebody else has put them.
const (
	UpdateOurs Update = iota // calico and calico-ipam, and what was installed by us
	UpdateNone
	UpdateAll
)

// Main does what the environment asks for (spec §6.1).
func Main(ctx context.Context, c Config, getenv func(string) string, log *slog.Logger) error {
	c, err := Settings(c, getenv)
	if err != nil {
		return err
	}
	stay, err := truth("SLEEP", getenv)
	if err != nil {
		return err
	}
	left, err := Run(c)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		log.Info("plugins that somebody else has installed are left as they are; UPDATE_CNI_BINARIES=true replaces them", "plugins", left, "directory", c.Bin)
	}
	log.Info("CNI plugins and their configuration are installed", "plugins", c.Bin, "configuration", filepath.Join(c.Conf, c.Name))
	if stay {
		<-ctx.Done()
	}
	return nil
}

// Settings reads what Calico's installer takes from its environment into a configuration whose directories are set.
func Settings(c Config, getenv func(string) string) (Config, error) {
	c.Name, c.Old = cmp.Or(getenv("CNI_CONF_NAME"), "10-calico.conflist"), getenv("CNI_OLD_CONF_NAME")
	for variable, name := range map[string]string{"CNI_CONF_NAME": c.Name, "CNI_OLD_CONF_NAME": c.Old} {
		if name != "" && name != filepath.Base(name) {
			return c, fmt.Errorf("%s %q is not the name of a file; it is in the directory of configurations", variable, name)
		}
	}
	c.Skip = strings.FieldsFunc(getenv("SKIP_CNI_BINARIES"), func(r rune) bool { return r == ',' || r == ' ' })
	if getenv("UPDATE_CNI_BINARIES") != "" {
		all, err := truth("UPDATE_CNI_BINARIES", getenv)
		if err != nil {
			return c, err
		}
		if c.Update = UpdateNone; all {
			c.Update = UpdateAll
		}
	}
	template := getenv("CNI_NETWORK_CONFIG")
	if file := getenv("CNI_NETWORK_CONFIG_FILE"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return c, fmt.Errorf("CNI_NETWORK_CONFIG_FILE: %w", err)
		}
		template = string(text)
	}
	var err error
	c.Content, err = Conflist(template, getenv)
	return c, err
}

func truth(variable string, getenv func(string) string) (bool, error) {
	switch value := strings.ToLower(getenv(variable)); value {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, fmt.Errorf("environment variable %s: %q is not a truth value; use true or false", variable, value)
	}
}

// Run installs, and tells which plugins were left because they are somebody else's. What is as it should be already is not
// touched, so that no runtime reads it again.
func Run(c Config) (left []string, err error) {
	programs, err := os.ReadDir(c.From)
	if err != nil {
		return nil, fmt.Errorf("programs to install: %w", err)
	}
	if err := os.MkdirAll(c.Bin, 0o755); err != nil {
		return nil, fmt.Errorf("directory of plugins: %w", err)
	}
	record, err := readRecord(c.Bin)
	if err != nil {
		return nil, err
	}
	for _, p := range programs {
		if !p.Type().IsRegular() || slices.Contains(c.Skip, p.Name()) {
			continue
		}
		done, err := program(c, p.Name(), record)
		if err != nil {
			return nil, fmt.Errorf("plugin %s: %w", p.Name(), err)
		}
		if !done {
			left = append(left, p.Name())
		}
	}
	if err := os.MkdirAll(c.Conf, 0o755); err != nil {
		return nil, fmt.Errorf("directory of configurations: %w", err)
	}
	if err := replace(filepath.Join(c.Conf, c.Name), c.Content, 0o644); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", c.Name, err)
	}
	if c.Old != "" && c.Old != c.Name {
		if err := os.Remove(filepath.Join(c.Conf, c.Old)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("configuration before: %w", err)
		}
	}
	return left, nil
}

// program installs one plugin, unless it is there and not to be replaced. That it is ours is on record before it is there.
func program(c Config, name string, record record) (done bool, err error) {
	body, err := os.ReadFile(filepath.Join(c.From, name))
	if err != nil {
		return false, err
	}
	to := filepath.Join(c.Bin, name)
	if is, err := os.ReadFile(to); err == nil && !bytes.Equal(is, body) && !c.Update.replaces(name, record.has(name, is)) {
		return false, nil
	}
	if err := record.add(name, body); err != nil {
		return false, err
	}
	return true, replace(to, body, 0o755)
}

// replaces tells whether a program that is there is replaced by another one.
func (u Update) replaces(name string, installedByUs bool) bool {
	return u == UpdateAll || u == UpdateOurs && (installedByUs || name == "calico" || name == "calico-ipam")
}

// replace makes a file have a content and a mode. It is written under a name that no runtime takes for a plugin or a
// configuration; whoever runs the old one goes on running it.
func replace(path string, body []byte, mode fs.FileMode) error {
	if is, err := os.ReadFile(path); err == nil && bytes.Equal(is, body) {
		return os.Chmod(path, mode)
	}
	fresh := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	if err := os.Rename(fresh, path); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
