package daemon

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// settings fills tagged structs from flags, environment and a file.
type settings struct {
	flags *pflag.FlagSet
	env   map[string][]string // flag name to names of environment variables; the first one that is set counts
	file  *string
}

// newSettings declares a flag for every tagged field of the given structs, and of structs that these embed.
func newSettings(flags *pflag.FlagSet, structs ...any) *settings {
	s := &settings{flags: flags, env: map[string][]string{}}
	for _, target := range structs {
		v := reflect.ValueOf(target).Elem()
		for _, f := range reflect.VisibleFields(v.Type()) {
			name := f.Tag.Get("flag")
			if name == "" {
				continue
			}
			usage := f.Tag.Get("usage")
			if env := variables(f); len(env) > 0 {
				s.env[name] = env
				usage += " [$" + strings.Join(env, ", $") + "]"
			}
			declare(flags, v.FieldByIndex(f.Index), name, f.Tag.Get("default"), usage)
		}
	}
	s.file = flags.String("config", "", "YAML file with settings, named as the flags")
	return s
}

// variables are the environment variables of a field.
func variables(f reflect.StructField) []string {
	return strings.FieldsFunc(f.Tag.Get("env"), func(r rune) bool { return r == ',' })
}

// Variables are the environment variables that set fields of a struct with settings.
func Variables(cfg any) (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeOf(cfg).Elem()) {
		names = append(names, variables(f)...)
	}
	return names
}

// Flags are settings of a program that is no daemon and writes its flags with one dash.
type Flags struct{ settings *settings }

// Declare declares the flags of tagged structs (see Main). When they have been parsed, Resolve brings in the environment.
func Declare(to *flag.FlagSet, structs ...any) Flags {
	s := newSettings(pflag.NewFlagSet(to.Name(), pflag.ContinueOnError), structs...)
	s.flags.VisitAll(func(f *pflag.Flag) { to.Var(single{s.flags, f}, f.Name, f.Usage) })
	return Flags{s}
}

// Resolve applies environment and file to every setting that no flag has given.
func (f Flags) Resolve(lookupEnv func(string) (string, bool)) error {
	return f.settings.resolve(lookupEnv)
}

// single is a flag that may be written with one dash.
type single struct {
	flags *pflag.FlagSet
	flag  *pflag.Flag
}

func (s single) String() string {
	if s.flag == nil { // package flag asks a zero value what it prints
		return ""
	}
	return s.flag.Value.String()
}

func (s single) Set(value string) error { return s.flags.Set(s.flag.Name, value) }
func (s single) IsBoolFlag() bool       { return s.flag.Value.Type() == "bool" }

// declare adds one flag bound to field. A default that does not parse is a mistake in the program, found by any start.
func declare(flags *pflag.FlagSet, field reflect.Value, name, def, usage string) {
	switch p := field.Addr().Interface().(type) {
	case *string:
		flags.StringVar(p, name, *p, usage)
	case *bool:
		flags.BoolVar(p, name, *p, usage)
	case *int:
		flags.IntVar(p, name, *p, usage)
	case *time.Duration:
		flags.DurationVar(p, name, *p, usage)
	case *[]string:
		flags.StringSliceVar(p, name, *p, usage)
	default:
		panic(fmt.Sprintf("daemon: setting %s has type %s, for which there is no flag", name, field.Type()))
	}
	if def == "" || !field.IsZero() {
		return
	}
	flag := flags.Lookup(name)
	if err := flag.Value.Set(def); err != nil {
		panic(fmt.Sprintf("daemon: default of setting %s: %v", name, err))
	}
	flag.DefValue, flag.Changed = def, false
}

// resolve applies environment and file to every setting that no flag has given.
func (s *settings) resolve(lookupEnv func(string) (string, bool)) error {
	fromFile, err := readFile(*s.file)
	if err != nil {
		return err
	}
	var errs []error
	s.flags.VisitAll(func(f *pflag.Flag) {
		value, inFile := fromFile[f.Name]
		delete(fromFile, f.Name)
		if f.Changed {
			return
		}
		source := "file " + *s.file
		for _, env := range s.env[f.Name] {
			if v, _ := lookupEnv(env); v != "" { // manifests set what they leave open to nothing
				value, inFile, source = v, true, "environment variable "+env
				break
			}
		}
		if !inFile {
			return
		}
		if err := f.Value.Set(value); err != nil {
			errs = append(errs, fmt.Errorf("setting %s from %s: %q is not valid: %w", f.Name, source, value, err))
		}
	})
	unknown := make([]string, 0, len(fromFile))
	for name := range fromFile {
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		errs = append(errs, fmt.Errorf("file %s: there is no setting %q; --help lists them", *s.file, name))
	}
	return errors.Join(errs...)
}

func readFile(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("setting config: %w; give the path of a readable YAML file", err)
	}
	var raw map[string]any
	if err := yaml.Unmarshal(body, &raw); err != nil {
		return nil, fmt.Errorf("file %s is not YAML: %w", path, err)
	}
	out := make(map[string]string, len(raw))
	for name, v := range raw {
		if list, ok := v.([]any); ok {
			parts := make([]string, len(list))
			for i, e := range list {
				parts[i] = fmt.Sprint(e)
			}
			out[name] = strings.Join(parts, ",")
			continue
		}
		out[name] = fmt.Sprint(v)
	}
	return out, nil
}
