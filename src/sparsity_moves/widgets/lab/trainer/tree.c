/* Trees as the FFN's route (`sparsity_moves.model.tree`): every unit is a node, and says itself where a token goes on.

   A tree's nodes lie in heap order: node n's children are 2n + 1, where its unit before φ is not above zero, and
   2n + 2, where it is. The choice has no gradient; the masked form computes every unit and closes the others. */

#include "trainer.h"

int tree_nodes(int depth) { return (2 << depth) - 1; }

/* value and slope (N, W) are zeroed wherever no path leads, by the units before φ; `load` counts the visits. */
void keep_paths(int n, const float *before, float *value, float *slope) {
    int nodes = tree_nodes(model.depth);
    for (int u = 0; u < model.width; u++) load[u] = 0;
    for (int i = 0; i < n; i++)
        for (int root = 0; root < model.width; root += nodes) {
            int at = i * model.width + root, on = 0;
            for (int node = 0; node < nodes; node++)
                if (node == on) {
                    load[root + node]++;
                    on = 2 * node + (before[at + node] > 0 ? 2 : 1);
                } else
                    value[at + node] = slope[at + node] = 0;
        }
}
