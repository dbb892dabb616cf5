// s = score_mod(s, b, h, i, j, ...), by functions that are compiled for the one that was traced (cpu/mods.h).
#pragma once
#include "cpu/place.h"
#include "cpu/score.h"
#include "cpu/tile.h"

struct ScoreModParams {
  int64_t heads;  // of a batch element; 0: there is no function
};

template <class T>
class ScoreMod {
 public:
  static constexpr bool kKeeps = true, kAdds = false, kMultiplies = false, kPasses = true;

  template <class Place>
  ScoreMod(const ScoreModParams& params, const Place& place, double unit)
      : used_(params.heads),
        panel_((Panel)place.arrays.score_panel),
        row_((Row)place.arrays.score_row),
        params_(place.arrays.score_params),
        batch_(used_ ? place.head / params.heads : 0),
        head_(used_ ? place.head % params.heads : 0),
        last_key_(place.shape.seqlen_k - 1),
        natural_(unit * kLn2) {}

  bool used() const { return used_; }
  double unit() const { return kLog2E; }

  template <int N>
  void forward(const PanelTile<T, N>& tile, T* x, T* kept) const {
    panel_(params_, batch_, head_, tile.queries, N * kLanes<T>, tile.keys, tile.pitch, tile.first_key, last_key_,
           natural_, x, kept);
  }
  void forward(const RowTile<T>& tile, T* x, T*) const {
    row_(params_, batch_, head_, tile.query, tile.keys, tile.first_key, last_key_, natural_, x);
  }

  template <class Rows, class Columns>
  Vector<T> backward(Vector<T> g, Rows, Columns, Vector<T> kept) const {
    return g * kept;
  }

 private:
  using Panel = void (*)(const void*, int64_t, int64_t, const Integer<T>*, int64_t, int64_t, int64_t, int64_t, int64_t,
                         double, T*, T*);
  using Row = void (*)(const void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, T*);

  bool used_;
  Panel panel_;
  Row row_;
  const void* params_;
  int64_t batch_, head_, last_key_;
  double natural_;
};
