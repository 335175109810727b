package verb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func patch(g *globals) *cobra.Command {
	var text, how string
	cmd := &cobra.Command{
		Use: "patch KIND NAME -p PATCH", Short: "Change fields of a resource", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := userKind(args[0])
			if err != nil {
				return err
			}
			body, err := yaml.YAMLToJSON([]byte(text))
			if err != nil || text == "" {
				return fmt.Errorf("flag --patch: %q is neither JSON nor YAML", text)
			}
			return g.edit(cmd, kind, args[1], func(o api.Object) (api.Object, error) { return patched(o, body, how) }, "patch", "patched")
		},
	}
	cmd.Flags().StringVarP(&text, "patch", "p", "", "the patch, JSON or YAML")
	cmd.Flags().StringVarP(&how, "type", "t", "strategic", "strategic, merge (RFC 7386) or json (RFC 6902)")
	namespaceFlag(cmd, g)
	return cmd
}

// patched is the object with the patch applied, judged as strictly as a file of the user's. No list of our kinds has a
// merge key, so that a strategic patch replaces lists, as a merge patch does.
func patched(o api.Object, body []byte, how string) (api.Object, error) {
	known := o.DeepCopyObject().(api.Object)
	known.Residue().Clear() // what this version does not know is not the user's to be judged by
	old, err := api.Encode(known)
	if err != nil {
		return nil, err
	}
	var next []byte
	switch how {
	case "strategic", "merge":
		next, err = jsonpatch.MergePatch(old, body)
	case "json":
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(body); err == nil {
			next, err = p.Apply(old)
		}
	default:
		return nil, fmt.Errorf("flag --type: %q is no type of patch; use strategic, merge or json", how)
	}
	if err != nil {
		return nil, fmt.Errorf("the patch does not apply: %w", err)
	}
	objects, err := api.Decode(next)
	if err != nil {
		return nil, err
	}
	if len(objects) != 1 || api.KeyOf(objects[0]) != api.KeyOf(o) {
		return nil, errors.New("a patch cannot change kind, namespace or name")
	}
	*objects[0].Residue() = *o.Residue()
	return objects[0], nil
}

func label(g *globals) *cobra.Command {
	var overwrite, removeIt bool
	cmd := &cobra.Command{
		Use: "label KIND NAME (KEY=VALUE | --remove KEY)", Short: "Set or remove a label of a resource", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := userKind(args[0])
			if err != nil {
				return err
			}
			change := func(o api.Object) (api.Object, error) { return labelled(o, args[2], overwrite, removeIt) }
			return g.edit(cmd, kind, args[1], change, "label", "labelled")
		},
	}
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace a label that has another value")
	cmd.Flags().BoolVar(&removeIt, "remove", false, "remove the label")
	namespaceFlag(cmd, g)
	return cmd
}

func labelled(o api.Object, text string, overwrite, removeIt bool) (api.Object, error) {
	labels := o.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	key, value, given := strings.Cut(text, "=")
	old, has := labels[key]
	switch {
	case removeIt && !has:
		return nil, fmt.Errorf("there is no label %s on %s", key, api.KeyOf(o))
	case removeIt:
		delete(labels, key)
	case !given:
		return nil, fmt.Errorf("%q is not of the form KEY=VALUE", text)
	case has && old != value && !overwrite:
		return nil, fmt.Errorf("%s has label %s=%s already; use --overwrite to replace it", api.KeyOf(o), key, old)
	default:
		labels[key] = value
	}
	o.SetLabels(labels)
	return o, nil
}

// edit reads, changes and writes a resource; if somebody else wrote meanwhile it starts again.
func (g *globals) edit(cmd *cobra.Command, kind api.Kind, name string, change func(api.Object) (api.Object, error), verb, past string) error {
	return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
		key := g.key(kind, name)
		var written api.Object
		err := writable(key)
		for range conflicts {
			if err != nil && !errors.Is(err, datastore.ErrConflict) {
				break
			}
			var o api.Object
			if o, err = c.Get(ctx, key); err != nil {
				break
			}
			if o, err = change(o); err != nil {
				break
			}
			if written, err = c.Update(ctx, o); err == nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("failed to %s '%s' resource: [%w]", verb, kind.Name, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Successfully %s 1 '%s' resource\n", past, kind.Name)
		return warnOfLimit(ctx, c, written, cmd.ErrOrStderr())
	})
}
