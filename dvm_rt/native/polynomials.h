// Polynomials of native/functions.h and native/vec.h, highest coefficient first: printed by scripts/polynomials, which says
// how they are made.
#pragma once
#include <cstdint>

namespace dvm::polynomial {
// e^r = 1 + r + r^2 p(r), |r| <= ln(2) / 2; 2^-38.2.
constexpr double EXP_SINGLE[] = {
    0x1.a113930ccbff5p-16, 0x1.a152099da25bap-13, 0x1.6c1685542fcb2p-10, 0x1.1110c5ed7d6c9p-7,
    0x1.5555555c910d6p-5, 0x1.555555676c1bbp-3, 0x1.0000000000000p-1,
};
// e^r = 1 + r + r^2 p(r), |r| <= ln(2) / 2; 2^-62.4.
constexpr double EXP_DOUBLE[] = {
    0x1.1f7340dbc337ep-29, 0x1.af4e554377204p-26, 0x1.27e4db46cddd1p-22, 0x1.71de01fdbf9cap-19,
    0x1.a01a01a6e1e2ap-16, 0x1.a01a01abf85abp-13, 0x1.6c16c16c162c3p-10, 0x1.11111111100bep-7,
    0x1.5555555555556p-5, 0x1.5555555555557p-3, 0x1.0000000000000p-1,
};
// sinh r = r + r^3 p(r^2); 2^-47.5.
constexpr double SINH_SINGLE[] = {
    0x1.72ada50a7cd68p-19, 0x1.a019c3324fe13p-13, 0x1.11111117140a3p-7, 0x1.5555555554f8cp-3,
};
// sinh r = r + r^3 p(r^2); 2^-72.6.
constexpr double SINH_DOUBLE[] = {
    0x1.61bff1c64f494p-33, 0x1.ae642c5c1fa33p-26, 0x1.71de3a5aaefb9p-19, 0x1.a01a01a01969bp-13,
    0x1.1111111111111p-7, 0x1.5555555555555p-3,
};
// cosh r = 1 + r^2 p(r^2); 2^-44.1.
constexpr double COSH_SINGLE[] = {
    0x1.a137426f16cfcp-16, 0x1.6c166b8f94446p-10, 0x1.55555565dead9p-5, 0x1.fffffffffe028p-2,
};
// cosh r = 1 + r^2 p(r^2); 2^-68.7.
constexpr double COSH_DOUBLE[] = {
    0x1.1f7f6aa421dd8p-29, 0x1.27e4d3f50d87fp-22, 0x1.a01a01a9f72adp-16, 0x1.6c16c16c15a48p-10,
    0x1.5555555555557p-5, 0x1.0000000000000p-1,
};
// log(1 + f) = f + f^2 p(f), 1 + f from sqrt(1/2) to sqrt(2); 2^-36.8.
constexpr double LOG_SINGLE[] = {
    -0x1.8e19896e94190p-5, 0x1.736ddf636adb2p-4, -0x1.79dadfb6e7fcap-4, 0x1.72486dd2aa98fp-4,
    -0x1.9595ac5990e10p-4, 0x1.c6f00215b91dap-4, -0x1.0018f07ce1289p-3, 0x1.249408b273046p-3,
    -0x1.5554c939e6e03p-3, 0x1.9999907fdc231p-3, -0x1.00000092d2b44p-2, 0x1.5555555b184ecp-2,
    -0x1.ffffffffcc90fp-2,
};
// log(1 + f) = f + f^2 p(f), 1 + f from sqrt(1/2) to sqrt(2); 2^-55.1.
constexpr double LOG_DOUBLE[] = {
    0x1.ae3ddab18c1b2p-6, -0x1.e6e9eaf6d12f3p-5, 0x1.07f6a730be819p-4, -0x1.d0750c3a9ae25p-5,
    0x1.d1d857a2cf5dbp-5, -0x1.fc1d1c7f36ff3p-5, 0x1.11b5ca2e8d529p-4, -0x1.24cc9f1cc2daap-4,
    0x1.3b0cd8396ef66p-4, -0x1.5551d43abcc59p-4, 0x1.745d381f8b9fap-4, -0x1.9999b7df8ac3dp-4,
    0x1.c71c71c4bb249p-4, -0x1.ffffff6f60a91p-4, 0x1.2492492388170p-3, -0x1.5555555602023p-3,
    0x1.999999999c6b5p-3, -0x1.ffffffffff607p-3, 0x1.5555555555548p-2, -0x1.0000000000000p-1,
};
// asinh x = x + x^3 p(x^2), |x| <= 1/4; 2^-45.4.
constexpr double ASINH_SMALL_SINGLE[] = {
    0x1.ea66642f3763bp-7, -0x1.6be03f7ea07bep-6, 0x1.f1b14066b4099p-6, -0x1.6db6b2b08cb22p-5,
    0x1.3333331752ca7p-4, -0x1.55555555523bbp-3,
};
// atanh x = x + x^3 p(x^2), |x| <= 1/4; 2^-42.6.
constexpr double ATANH_SMALL_SINGLE[] = {
    0x1.7427f1143b04fp-4, 0x1.7034ca557b84ep-4, 0x1.c73f89fefbe67p-4, 0x1.249206b085559p-3,
    0x1.999999f53f06ep-3, 0x1.555555554b205p-2,
};
// 2 atanh s = 2 s + s^3 p(s^2), s = f / (2 + f); 2^-43.1.
constexpr double ATANH_SINGLE[] = {
    0x1.8c92867b49a01p-3, 0x1.c67a84e8a4ba0p-3, 0x1.249324907dae3p-2, 0x1.999998ca249fbp-2,
    0x1.5555555564fdap-1,
};
// 2 atanh s = 2 s + s^3 p(s^2), s = f / (2 + f); 2^-57.6.
constexpr double ATANH_DOUBLE[] = {
    0x1.2b5f68a50d903p-3, 0x1.39fdcceb4bb45p-3, 0x1.7462b91b8df65p-3, 0x1.c71c62d5e53e0p-3,
    0x1.2492492dfd86cp-2, 0x1.9999999995273p-2, 0x1.5555555555558p-1,
};
// 2 atanh s = 2 s + 2/3 s^3 + s^5 p(s^2); 2^-70.0.
constexpr double ATANH_TAIL_DOUBLE[] = {
    0x1.e03a7acf07f85p-4, 0x1.df7ba1f4809c3p-4, 0x1.1118cd67251c5p-3, 0x1.3b1395b82701ep-3,
    0x1.745d177ad436ap-3, 0x1.c71c71c6ea5acp-3, 0x1.2492492492522p-2, 0x1.999999999999ap-2,
};
// sin r = r + r^3 p(r^2), |r| <= pi / 4; 2^-35.7.
constexpr double SIN_SINGLE[] = {
    0x1.6dbbee1f24647p-19, -0x1.a013a11619d1bp-13, 0x1.11110dea5e8c0p-7, -0x1.555555545c0f8p-3,
};
// sin r = r + r^3 p(r^2), |r| <= pi / 4; 2^-56.1.
constexpr double SIN_DOUBLE[] = {
    0x1.5e098556d302ep-33, -0x1.ae60069e53ef1p-26, 0x1.71de379252004p-19, -0x1.a01a019e80693p-13,
    0x1.1111111110ba5p-7, -0x1.5555555555555p-3,
};
// cos r = 1 - r^2 / 2 + r^4 p(r^2); 2^-39.5.
constexpr double COS_SINGLE[] = {
    -0x1.2522e6d930e5bp-22, 0x1.a015c02820885p-16, -0x1.6c16bf51b0df9p-10, 0x1.555555550225fp-5,
};
// cos r = 1 - r^2 / 2 + r^4 p(r^2); 2^-60.3.
constexpr double COS_DOUBLE[] = {
    -0x1.907c0e63adbb6p-37, 0x1.1eeb66b683028p-29, -0x1.27e4fa15bd814p-22, 0x1.a01a019f4d0edp-16,
    -0x1.6c16c16c16960p-10, 0x1.5555555555555p-5,
};
// atan t = t + t^3 p(t^2), |t| <= tan(pi / 8); 2^-38.1.
constexpr double ATAN_SINGLE[] = {
    -0x1.4ae868a2273e0p-5, 0x1.243050d0133a4p-4, -0x1.71d067c3a46fbp-4, 0x1.c6f6422e9831dp-4,
    -0x1.2491bf4d1afe5p-3, 0x1.9999982174445p-3, -0x1.5555555501010p-2,
};
// atan t = t + t^3 p(t^2), |t| <= tan(pi / 8); 2^-57.3.
constexpr double ATAN_DOUBLE[] = {
    -0x1.39b5620720ceap-6, 0x1.412ff26d1091bp-5, -0x1.a08801ffa873ap-5, 0x1.dfe2eb7b16e67p-5,
    -0x1.10fa46077737ep-4, 0x1.3b125f7ecb403p-4, -0x1.745d0b01b986ap-4, 0x1.c71c718447f81p-4,
    -0x1.249249243498fp-3, 0x1.999999999932ep-3, -0x1.5555555555555p-2,
};
// asin s = s + s^3 p(s^2), |s| <= 1/2; 2^-33.9.
constexpr double ASIN_SINGLE[] = {
    0x1.fbaa70c46e293p-6, 0x1.5a41fba7de28bp-7, 0x1.82e318947cfa5p-6, 0x1.efed0c67f5d24p-6,
    0x1.6dc0f61ccc6c3p-5, 0x1.33331ec1202bdp-4, 0x1.5555555c06d99p-3,
};
// asin s = s + s^3 p(s^2), |s| <= 1/2; 2^-57.9.
constexpr double ASIN_DOUBLE[] = {
    0x1.d78189767524ep-6, -0x1.e7a24f548c99fp-7, 0x1.1d661531b222ep-6, 0x1.653a8f8cfd43cp-8,
    0x1.524ea8b3aad31p-7, 0x1.78246f32d075cp-7, 0x1.c9cf3759fd8ffp-7, 0x1.1c4d343fa57f6p-6,
    0x1.6e8bb1d89492bp-6, 0x1.f1c71c1d4aa0dp-6, 0x1.6db6db6e3292ep-5, 0x1.3333333332ec4p-4,
    0x1.5555555555556p-3,
};
// erf x = x + x p(x^2), |x| <= 1; 2^-39.9.
constexpr double ERF_SINGLE[] = {
    0x1.1c41ab6eec487p-20, -0x1.d2b8522d6f7cbp-17, 0x1.f57e9cee106c1p-14, -0x1.bfe158a7be278p-11,
    0x1.56588b32275a7p-8, -0x1.b82cbae7577a7p-6, 0x1.ce2f20a7415c6p-4, -0x1.812746ade3c08p-2,
    0x1.06eba821465c6p-3,
};
// erf x = x + x p(x^2), |x| <= 1; 2^-62.5.
constexpr double ERF_DOUBLE[] = {
    0x1.05ffd737fb32ep-34, -0x1.389d4f2641625p-30, 0x1.f7b4bf3b13964p-27, -0x1.5f1ecb6f0764cp-23,
    0x1.b9df224ca4b97p-20, -0x1.f4d1e3183f7aep-17, 0x1.f9a321d5b8e1ep-14, -0x1.c02db3dac435fp-11,
    0x1.565bcd0dbaa38p-8, -0x1.b82ce31284e00p-6, 0x1.ce2f21a042b30p-4, -0x1.812746b0379e6p-2,
    0x1.06eba8214db69p-3,
};
// erfc x = e^(-x^2) p((x - 4) / (x + 4)) / (1 + 2 x), x >= 1/2 (SINGLE: 1 <= x <= 10.2); 2^-35.0.
constexpr double ERFC_SINGLE[] = {
    -0x1.7b1e5cf2be3c2p-12, -0x1.71c76dea91584p-11, 0x1.4f569999a627ep-8, -0x1.096dcf87f81e2p-6,
    0x1.30565040adccdp-5, -0x1.0fb13631852bfp-4, 0x1.7fef9b36380e1p-4, -0x1.9ddb0c390d728p-4,
    0x1.16ece0481fcf0p-4, 0x1.f7f5da2935d57p-7, -0x1.1df1acffb8a41p-3, 0x1.3ba5916ea9e1cp+0,
};
// erfc x = e^(-x^2) p((x - 4) / (x + 4)) / (1 + 2 x), x >= 1/2 (SINGLE: 1 <= x <= 10.2); 2^-60.2.
constexpr double ERFC_DOUBLE[] = {
    0x1.04990f2feabfbp-29, -0x1.4d63ad34d3b4fp-27, -0x1.386fa6b33b927p-26, 0x1.bc192bfcf985bp-24,
    0x1.42abd43198173p-24, -0x1.b8101d53afd8dp-21, 0x1.3af564cf2d73ap-22, 0x1.7ef6d4c489b95p-18,
    -0x1.788a2450fc21dp-17, -0x1.995510716a254p-16, 0x1.3be05857ec241p-13, -0x1.a1df431b2243fp-13,
    -0x1.8d4a9b39e6352p-11, 0x1.49c672a7d068fp-8, -0x1.09623883ce00dp-6, 0x1.3079edf6255dfp-5,
    -0x1.0fb06dfe4edfdp-4, 0x1.7fee004e14949p-4, -0x1.9ddb23c3e8db3p-4, 0x1.16ecefcfa52c8p-4,
    0x1.f7f5df66fd764p-7, -0x1.1df1ad154a28ep-3, 0x1.3ba5916e9fd7fp+0,
};
// x^(-1/3), 1 <= x <= 2; 2^-16.8.
constexpr double RCBRT_SINGLE[] = {
    -0x1.0e87006cbe6bbp-6, 0x1.37ce9e9ed0a1dp-3, -0x1.2c4b958d54c08p-1, 0x1.3a267a3d49ad4p+0,
    -0x1.8dd4bd7d34771p+0, 0x1.c713e2847cbe6p+0,
};
// x^(-1/3), 1 <= x <= 2; 2^-16.8.
constexpr double RCBRT_DOUBLE[] = {
    -0x1.0e87006cbe6bbp-6, 0x1.37ce9e9ed0a1dp-3, -0x1.2c4b958d54c08p-1, 0x1.3a267a3d49ad4p+0,
    -0x1.8dd4bd7d34771p+0, 0x1.c713e2847cbe6p+0,
};
// log gamma(2 + u) = (1 + u) u p(u), |u| <= 1; 2^-54.4.
constexpr double LGAMMA_DOUBLE[] = {
    0x1.95a1a3aa9df2ep-30, -0x1.a2835645411e5p-29, -0x1.f88206a4a8b27p-29, 0x1.034ff4e6787ccp-27,
    0x1.ed386b522df5dp-27, -0x1.fe0f43107e5c9p-26, 0x1.349389c70a1cep-27, -0x1.491818361fe50p-26,
    0x1.b15da15ef66a2p-24, -0x1.c6697b43063ccp-23, 0x1.aba9aae264393p-22, -0x1.c3ee6fd3f403dp-21,
    0x1.e5ebc24390c9ap-20, -0x1.027a77320de28p-18, 0x1.13df5c29f7929p-17, -0x1.284b7b7570014p-16,
    0x1.402f44c69de10p-15, -0x1.5c86ebc7a272fp-14, 0x1.7ed732472e574p-13, -0x1.a96a3ea2d22c0p-12,
    0x1.dfebcf93da48cp-11, -0x1.145121fc5cf89p-9, 0x1.47974853a553fp-8, -0x1.95ce223a97d2bp-7,
    0x1.0e0c9df293540p-5, -0x1.9ae6509ea10afp-4, 0x1.b0ee6072093ccp-2,
};
// An odd function that rises to 1, in segments |x| = n width + u: c[..][n] is a polynomial in u, highest coefficient first, whose
// last one is u instead of 0 in segment 0, so that the rest is a small correction there. From `limit` on the function is 1.
template <int DEGREE> struct Segments {
  float width, per_unit, limit;
  alignas(64) float c[DEGREE + 1][16];
};
constexpr Segments<5> ERF_SEGMENTS = {0x1.134p-2f, 0x1.dc314cp+1f, 0x1.0a79f6p+2f, {
    {0x1.c6274cp-4f, 0x1.33123ep-4f, -0x1.d19504p-9f, -0x1.f03684p-5f,
     -0x1.0aa77ep-4f, -0x1.1cbc1cp-5f, -0x1.ba5fccp-9f, 0x1.787a0ap-7f,
     0x1.8e2624p-7f, 0x1.eea604p-8f, 0x1.c3695cp-9f, 0x1.43eedcp-10f,
     0x1.79229cp-12f, 0x1.6a65bep-14f, 0x1.228bf6p-16f, 0x1.878daap-19f},
    {0x1.3e842p-12f, 0x1.10ab26p-3f, 0x1.74f35p-3f, 0x1.1264f4p-3f,
     0x1.69384cp-5f, -0x1.96d876p-6f, -0x1.92a614p-5f, -0x1.56357p-5f,
     -0x1.9724e8p-6f, -0x1.77827cp-7f, -0x1.179a4ep-8f, -0x1.573ae6p-10f,
     -0x1.5f9fa2p-12f, -0x1.2f095p-14f, -0x1.b9d87p-17f, -0x1.119532p-19f},
    {-0x1.812b82p-2f, -0x1.3286c8p-2f, -0x1.e6efd2p-4f, 0x1.e3496p-5f,
     0x1.3e1866p-3f, 0x1.4a92eep-3f, 0x1.e052p-4f, 0x1.0fb2e4p-4f,
     0x1.f2bc22p-6f, 0x1.7b0662p-7f, 0x1.e2b116p-9f, 0x1.03763cp-10f,
     0x1.d9590ep-13f, 0x1.6fafbap-15f, 0x1.e7bea8p-18f, 0x1.14cb24p-20f},
    {0x1.30312cp-22f, -0x1.20edep-2f, -0x1.d1407p-2f, -0x1.e6488ap-2f,
     -0x1.8700f2p-2f, -0x1.fe2b6cp-3f, -0x1.148572p-3f, -0x1.f86f32p-5f,
     -0x1.860eeep-6f, -0x1.00f2b2p-7f, -0x1.21596ap-9f, -0x1.172986p-11f,
     -0x1.ce4f8p-14f, -0x1.48fa36p-16f, -0x1.92c4f2p-19f, -0x1.a88b9ap-22f},
    {0x1.06eba8p-3f, 0x1.0cbadcp+0f, 0x1.b0b8d8p-1f, 0x1.2d84cp-1f,
     0x1.6ba8p-2f, 0x1.7b95fep-3f, 0x1.56e722p-4f, 0x1.0c1604p-5f,
     0x1.6ac8eep-7f, 0x1.a8e146p-9f, 0x1.aea6a2p-11f, 0x1.79c4ecp-13f,
     0x1.1ecb3cp-15f, 0x1.78dd58p-18f, 0x1.ac975p-21f, 0x1.a5d5eap-24f},
    {0x0.p+0f, 0x1.2f43f8p-2f, 0x1.1b1738p-1f, 0x1.7de4f2p-1f,
     0x1.be461cp-1f, 0x1.e2a412p-1f, 0x1.f4733ep-1f, 0x1.fc02cp-1f,
     0x1.fecb0ep-1f, 0x1.ffae4cp-1f, 0x1.ffed24p-1f, 0x1.fffc34p-1f,
     0x1.ffff56p-1f, 0x1.ffffe6p-1f, 0x1.fffffcp-1f, 0x1.p+0f},
}};
constexpr Segments<7> TANH_SEGMENTS = {0x1.3aep-1f, 0x1.a0444cp+0f, 0x1.30d69ep+3f, {
    {-0x1.472fd8p-5f, 0x1.d25ecap-6f, -0x1.104932p-8f, -0x1.6a7e2p-10f,
     0x1.e831aap-15f, 0x1.4eca68p-14f, 0x1.ed5704p-16f, 0x1.32722ap-17f,
     0x1.6c862p-19f, 0x1.ac558ep-21f, 0x1.f5892ap-23f, 0x1.25522ap-24f,
     0x1.56fdd4p-26f, 0x1.9109b4p-28f, 0x1.d4e55p-30f, 0x1.121dap-31f},
    {-0x1.fa63a4p-8f, -0x1.b44478p-6f, 0x1.fed5p-7f, 0x1.0d44acp-10f,
     -0x1.7eb36ep-11f, -0x1.5b4de4p-12f, -0x1.c3ec7p-14f, -0x1.1037d6p-15f,
     -0x1.41098cp-17f, -0x1.784ce4p-19f, -0x1.b84a8ep-21f, -0x1.0172bp-22f,
     -0x1.2d067cp-24f, -0x1.5ff696p-26f, -0x1.9b83e4p-28f, -0x1.e12438p-30f},
    {0x1.14bbep-3f, -0x1.b6ab06p-5f, -0x1.595b4cp-6f, 0x1.26d4a6p-8f,
     0x1.8d8d3ep-9f, 0x1.164554p-10f, 0x1.55d772p-12f, 0x1.9565e2p-14f,
     0x1.dbf398p-16f, 0x1.169354p-17f, 0x1.45d2c8p-19f, 0x1.7cfd5ep-21f,
     0x1.bd76c6p-23f, 0x1.046b44p-24f, 0x1.307b1cp-26f, 0x1.63ff4cp-28f},
    {-0x1.a8a50cp-13f, 0x1.200decp-3f, -0x1.59fe84p-7f, -0x1.6133aep-6f,
     -0x1.1b0b52p-7f, -0x1.6846e8p-9f, -0x1.af9a86p-11f, -0x1.fc34fap-13f,
     -0x1.29b598p-14f, -0x1.5c4a1ep-16f, -0x1.974a18p-18f, -0x1.dc397ap-20f,
     -0x1.166746p-21f, -0x1.45824p-23f, -0x1.7c9548p-25f, -0x1.bcf9b2p-27f},
    {-0x1.55528ap-2f, -0x1.7f89aap-6f, 0x1.bf723p-4f, 0x1.bd3a08p-5f,
     0x1.2cc148p-6f, 0x1.6e91e8p-8f, 0x1.b1cf2p-10f, 0x1.fd006cp-12f,
     0x1.29de3p-13f, 0x1.5c5ec8p-15f, 0x1.975918p-17f, 0x1.dc47e2p-19f,
     0x1.166f28p-20f, 0x1.458b4ap-22f, 0x1.7c9fc8p-24f, 0x1.bd05f4p-26f},
    {-0x1.bd77ccp-23f, -0x1.889946p-2f, -0x1.f48ac6p-3f, -0x1.727d78p-4f,
     -0x1.d0a6a8p-6f, -0x1.154aaap-7f, -0x1.462b9ep-9f, -0x1.7e07aap-11f,
     -0x1.bee5b8p-13f, -0x1.054b48p-14f, -0x1.318448p-16f, -0x1.65367p-18f,
     -0x1.a1a6f4p-20f, -0x1.e8510ap-22f, -0x1.1d77e2p-23f, -0x1.4dc482p-25f},
    {0x1.66bedep-31f, 0x1.6673a4p-1f, 0x1.290804p-2f, 0x1.857834p-4f,
     0x1.d77c14p-6f, 0x1.167a36p-7f, 0x1.4693cap-9f, 0x1.7e2b44p-11f,
     0x1.bef1d6p-13f, 0x1.054d52p-14f, 0x1.3184fp-16f, 0x1.65369ep-18f,
     0x1.a1a6f6p-20f, 0x1.e850fcp-22f, 0x1.1d77d6p-23f, 0x1.4dc472p-25f},
    {0x0.p+0f, 0x1.1863p-1f, 0x1.af65dp-1f, 0x1.e70cdep-1f,
     0x1.f8944cp-1f, 0x1.fdd1dcp-1f, 0x1.ff5c9cp-1f, 0x1.ffd038p-1f,
     0x1.fff208p-1f, 0x1.fffbeap-1f, 0x1.fffecep-1f, 0x1.ffffa6p-1f,
     0x1.ffffe6p-1f, 0x1.fffff8p-1f, 0x1.fffffep-1f, 0x1.p+0f},
}};
// 2 atanh s = s p(s^2).
constexpr double ATANH_PAIRS[][2] = {
    {0x1.0000000000000p+1, 0x0.0p+0},
    {0x1.5555555555555p-1, 0x1.5555555555555p-55},
    {0x1.999999999999ap-2, -0x1.999999999999ap-56},
    {0x1.2492492492492p-2, 0x1.2492492492492p-56},
    {0x1.c71c71c71c71cp-3, 0x1.c71c71c71c71cp-57},
    {0x1.745d1745d1746p-3, -0x1.745d1745d1746p-58},
    {0x1.3b13b13b13b14p-3, -0x1.3b13b13b13b14p-57},
    {0x1.1111111111111p-3, 0x1.1111111111111p-59},
    {0x1.e1e1e1e1e1e1ep-4, 0x1.e1e1e1e1e1e1ep-60},
    {0x1.af286bca1af28p-4, 0x1.af286bca1af28p-58},
    {0x1.8618618618618p-4, 0x1.8618618618618p-58},
    {0x1.642c8590b2164p-4, 0x1.642c8590b2164p-59},
    {0x1.47ae147ae147bp-4, -0x1.eb851eb851eb8p-60},
    {0x1.2f684bda12f68p-4, 0x1.2f684bda12f68p-58},
    {0x1.1a7b9611a7b96p-4, 0x1.1a7b9611a7b96p-60},
    {0x1.0842108421084p-4, 0x1.0842108421084p-59},
    {0x1.f07c1f07c1f08p-5, -0x1.f07c1f07c1f08p-60},
    {0x1.d41d41d41d41dp-5, 0x1.0750750750750p-59},
    {0x1.bacf914c1bad0p-5, -0x1.bacf914c1bad0p-59},
    {0x1.a41a41a41a41ap-5, 0x1.0690690690690p-59},
    {0x1.8f9c18f9c18fap-5, -0x1.f3831f3831f38p-60},
    {0x1.7d05f417d05f4p-5, 0x1.7d05f417d05f4p-61},
};
// sin x = x p(x^2).
constexpr double SIN_PAIRS[][2] = {
    {0x1.0000000000000p+0, 0x0.0p+0},
    {-0x1.5555555555555p-3, -0x1.5555555555555p-57},
    {0x1.1111111111111p-7, 0x1.1111111111111p-63},
    {-0x1.a01a01a01a01ap-13, -0x1.a01a01a01a01ap-73},
    {0x1.71de3a556c734p-19, -0x1.c154f8ddc6c00p-73},
    {-0x1.ae64567f544e4p-26, 0x1.c062e06d1f209p-80},
    {0x1.6124613a86d09p-33, 0x1.f28e0cc748ebep-87},
    {-0x1.ae7f3e733b81fp-41, -0x1.1d8656b0ee8cbp-97},
    {0x1.952c77030ad4ap-49, 0x1.ac981465ddc6cp-103},
    {-0x1.2f49b46814157p-57, -0x1.2650f61dbdcb4p-112},
    {0x1.71b8ef6dcf572p-66, -0x1.d043ae40c4647p-120},
    {-0x1.761b41316381ap-75, 0x1.3423c7d91404fp-130},
    {0x1.3f3ccdd165fa9p-84, -0x1.58ddadf344487p-139},
    {-0x1.d1ab1c2dccea3p-94, -0x1.054d0c78aea14p-149},
};
// cos x = p(x^2).
constexpr double COS_PAIRS[][2] = {
    {0x1.0000000000000p+0, 0x0.0p+0},
    {-0x1.0000000000000p-1, 0x0.0p+0},
    {0x1.5555555555555p-5, 0x1.5555555555555p-59},
    {-0x1.6c16c16c16c17p-10, 0x1.f49f49f49f49fp-65},
    {0x1.a01a01a01a01ap-16, 0x1.a01a01a01a01ap-76},
    {-0x1.27e4fb7789f5cp-22, -0x1.cbbc05b4fa99ap-76},
    {0x1.1eed8eff8d898p-29, -0x1.2aec959e14c06p-83},
    {-0x1.93974a8c07c9dp-37, -0x1.05d6f8a2efd1fp-92},
    {0x1.ae7f3e733b81fp-45, 0x1.1d8656b0ee8cbp-101},
    {-0x1.6827863b97d97p-53, -0x1.eec01221a8b0bp-107},
    {0x1.e542ba4020225p-62, 0x1.ea72b4afe3c2fp-120},
    {-0x1.0ce396db7f853p-70, 0x1.aebcdbd20331cp-124},
    {0x1.f2cf01972f578p-80, -0x1.9ada5fcc1ab14p-135},
    {-0x1.88e85fc6a4e5ap-89, 0x1.71c37ebd16540p-143},
};
// log gamma(x) = (x - 1/2) log x - x + log(2 pi) / 2 + p(1 / x^2) / x.
constexpr double STIRLING_PAIRS[][2] = {
    {0x1.5555555555555p-4, 0x1.5555555555555p-58},
    {-0x1.6c16c16c16c17p-9, 0x1.f49f49f49f49fp-64},
    {0x1.a01a01a01a01ap-11, 0x1.a01a01a01a01ap-71},
    {-0x1.3813813813814p-11, 0x1.fb1fb1fb1fb20p-65},
    {0x1.b951e2b18ff23p-11, 0x1.5c3a9ce01b952p-65},
    {-0x1.f6ab0d9993c7dp-10, 0x1.f82553c999b0ep-64},
    {0x1.a41a41a41a41ap-8, 0x1.0690690690690p-62},
    {-0x1.e4286cb0f5398p-6, 0x1.1efcdab896745p-61},
    {0x1.6fe96381e0680p-3, -0x1.79e2405a71f88p-61},
    {-0x1.6476701181f3ap+0, 0x1.24246319da678p-56},
    {0x1.ace44322ce006p+3, -0x1.62c2b1bbcdd32p-51},
    {-0x1.39b2525cccc1bp+7, 0x1.52604768a30fcp-47},
    {0x1.12234e81b4e82p+11, -0x1.2c5f92c5f92c6p-43},
    {-0x1.1a198ae1c4ab8p+15, 0x1.4c012227b696ep-41},
};
// digamma x = log x - 1 / (2 x) + p(1 / x^2) / x^2.
constexpr double DIGAMMA_PAIRS[][2] = {
    {-0x1.5555555555555p-4, -0x1.5555555555555p-58},
    {0x1.1111111111111p-7, 0x1.1111111111111p-63},
    {-0x1.0410410410410p-8, -0x1.0410410410410p-62},
    {0x1.1111111111111p-8, 0x1.1111111111111p-64},
    {-0x1.f07c1f07c1f08p-8, 0x1.f07c1f07c1f08p-63},
    {0x1.5995995995996p-6, -0x1.9a99a99a99a9ap-60},
    {-0x1.5555555555555p-4, -0x1.5555555555555p-58},
    {0x1.c5e5e5e5e5e5ep-2, 0x1.7979797979798p-56},
    {-0x1.86e7f9b9fe6e8p+1, 0x1.9180646019180p-57},
    {0x1.a74ca514ca515p+4, -0x1.ad759ad759ad7p-51},
    {-0x1.1975cc0ed7304p+8, 0x1.28cfc4a33f129p-46},
    {0x1.c2f0566566566p+11, 0x1.5995995995996p-43},
    {-0x1.ac572aaaaaaabp+15, 0x1.5555555555555p-39},
    {0x1.dc0b1a5cfbe16p+19, 0x1.73ef85973ef86p-35},
};
// Zeros of log |gamma|, and what it is around them: 1, 2, left of -2, right and left of -3, -4, ..
struct Zero { double high, low, first, second, third; };
constexpr Zero LGAMMA_ZEROS[] = {
    {0x1.0000000000000p+0, 0x0.0p+0, -0x1.2788cfc6fb619p-1, 0x1.a51a6625307d3p-1, -0x1.9a4d55beab2d7p-2},
    {0x1.0000000000000p+1, 0x0.0p+0, 0x1.b0ee6072093cep-2, 0x1.4a34cc4a60fa6p-2, -0x1.13e001a557607p-4},
    {-0x1.3a7fc9600f86cp+1, -0x1.55f64f98af8d0p-55, 0x1.83fe966af535fp+0, 0x1.36eebb002f55dp+2, 0x1.694a6058a7858p+0},
    {-0x1.5fb410a1bd901p+1, 0x1.a19a96d2e6f85p-54, -0x1.ea12da904b18cp+0, 0x1.3267f3c265a52p+3, -0x1.4185ac30c8bf2p+4},
    {-0x1.9260dbc9e59afp+1, -0x1.f717cd335a7b3p-53, 0x1.f20a65f2fac55p+2, 0x1.9d4d2977150efp+4, 0x1.c1137124d5c5bp+6},
    {-0x1.fa471547c2fe5p+1, -0x1.70d4561291237p-56, -0x1.4b99d966c5647p+4, 0x1.f76deae0436bep+7, -0x1.d25359d4b2f38p+11},
    {-0x1.0284e78599581p+2, 0x1.e78c1e9e43cfep-53, 0x1.aca5cf4921642p+4, 0x1.44415cd813f8ep+8, 0x1.559b11b2a9c7cp+12},
    {-0x1.3f7577a6eeafdp+2, 0x1.5de5eab7f12cfp-53, -0x1.d224a3ef9e41fp+6, 0x1.b533c678a3956p+12, -0x1.0d3f7fee65d34p+19},
    {-0x1.4086a57f0b6d9p+2, -0x1.95262b72ca9cap-55, 0x1.ed72e0829ae02p+6, 0x1.cecc32ec22f9bp+12, 0x1.253d8563f7264p+19},
    {-0x1.7fe92f591f40dp+2, -0x1.7dd4ed62cbd32p-52, -0x1.661f6a43a5e12p+9, 0x1.f79dcb794f26fp+17, -0x1.d6e8088a19ffep+26},
    {-0x1.8016b25897c8dp+2, 0x1.27e0f49a4ba72p-54, 0x1.69de49e3af2aap+9, 0x1.fce23484cfd10p+17, 0x1.de503a3c37c40p+26},
    {-0x1.bffcbf76b86f0p+2, 0x1.853b29347b806p-57, -0x1.3abf7a5cea91bp+12, 0x1.8349a2550422dp+23, -0x1.3d91dadc98428p+35},
    {-0x1.c0033fdedfe1fp+2, 0x1.20bb7d2324678p-52, 0x1.3b407aa387bd1p+12, 0x1.83e85daafbad6p+23, 0x1.3e552b5e3c226p+35},
    {-0x1.ffff97f8159cfp+2, -0x1.e54f415a91586p-55, -0x1.3af76fe4c2fabp+15, 0x1.838e76caaf123p+29, -0x1.3de68b3256526p+44},
    {-0x1.000034028b3f9p+3, -0x1.f60cb3cec1cedp-52, 0x1.3b088fed67718p+15, 0x1.83a3893550edcp+29, 0x1.3e0078db8ada4p+44},
    {-0x1.1ffffa3884bd0p+3, -0x1.ff90c9d2ae925p-53, -0x1.625edfc63db2fp+18, 0x1.ea8c150480a7ap+35, -0x1.c4b30e4bc55c1p+53},
    {-0x1.200005c7768fbp+3, -0x1.b5b610ffb70d4p-54, 0x1.6261203919440p+18, 0x1.ea8f32fb7f586p+35, 0x1.c4b75ee68e2bap+53},
    {-0x1.3fffff6c0d7c0p+3, 0x1.197cea8c42d7dp-51, -0x1.baf7da5f3795dp+21, 0x1.7f3e8791fa0d2p+42, -0x1.ba18befcaaa63p+63},
    {-0x1.40000093f2777p+3, -0x1.927b45d95e154p-52, 0x1.baf825a0c63b2p+21, 0x1.7f3ec8ae05f2ep+42, 0x1.ba192fa62a5c8p+63},
    {-0x1.5ffffff28cdd4p+3, 0x1.c9924a65aa486p-53, -0x1.308a7d8eadb7cp+25, 0x1.6a4938065bfd2p+49, -0x1.1f51f646980c5p+74},
    {-0x1.6000000d7322ap+3, -0x1.8aecb2d37ff52p-51, 0x1.308a827152450p+25, 0x1.6a493dd62402ep+49, 0x1.1f51fd307a7cdp+74},
    {-0x1.7ffffffee1127p+3, -0x1.ce1f7906b30f5p-54, -0x1.c8cfbfaf2b0c8p+28, 0x1.97926203e98acp+56, -0x1.e4da54ebc6dacp+84},
    {-0x1.800000011eed9p+3, 0x1.19d5307e1fb5ep-53, 0x1.c8cfc050d4f38p+28, 0x1.9792629426754p+56, 0x1.e4da55ed2869fp+84},
    {-0x1.9fffffffe9edcp+3, 0x1.84f40342d001cp-51, -0x1.7328cbfacb4e5p+32, 0x1.0d0fa2e06b2f1p+64, -0x1.04105bec453b2p+96},
    {-0x1.a000000016124p+3, -0x1.84e03341ee8ddp-51, 0x1.7328cc0534b1bp+32, 0x1.0d0fa2e7f760fp+64, 0x1.04105bf7369b6p+96},
    {-0x1.bffffffffe6c7p+3, 0x1.d2a30f3dae0fbp-51, -0x1.44c3b27faa6bcp+36, 0x1.9bfff16cfee53p+71, -0x1.5c71eb305bbbap+107},
    {-0x1.c000000001939p+3, -0x1.d2a2f4a73af63p-51, 0x1.44c3b28055944p+36, 0x1.9bfff16dd8075p+71, 0x1.5c71eb316f30cp+107},
    {-0x1.dfffffffffe52p+3, 0x1.fcf9ccfd8867ep-51, -0x1.30777757fa84ap+40, 0x1.6a1bf33124eddp+79, -0x1.1f1c1dba92510p+119},
    {-0x1.e0000000001aep+3, -0x1.fcf9ccde87210p-51, 0x1.30777758057b6p+40, 0x1.6a1bf33131f80p+79, 0x1.1f1c1dbaa1d33p+119},
    {-0x1.fffffffffffe5p+3, -0x1.80c18cc43ea26p-53, -0x1.30777757ffa65p+44, 0x1.6a1bf3312b084p+87, -0x1.1f1c1dba99933p+131},
    {-0x1.000000000000dp+4, -0x1.cfe7ce6768509p-50, 0x1.307777580059bp+44, 0x1.6a1bf3312bddap+87, 0x1.1f1c1dba9a910p+131},
};
// The zero of digamma above 0.
constexpr Zero DIGAMMA_ZERO = {0x1.762d86356be3fp+0, 0x1.b86a722197829p-54, 0x1.ef72bc8ee38acp-1, -0x1.c563b54aa1a35p-2, 0x1.08b4294d50381p-2};
// 64 zero bits, then the first bits of 2 / pi behind the binary point.
constexpr uint64_t TWO_OVER_PI[] = {
    0,
    0xa2f9836e4e441529ull, 0xfc2757d1f534ddc0ull, 0xdb6295993c439041ull, 0xfe5163abdebbc561ull,
    0xb7246e3a424dd2e0ull, 0x06492eea09d1921cull, 0xfe1deb1cb129a73eull, 0xe88235f52ebb4484ull,
    0xe99c7026b45f7e41ull, 0x3991d639835339f4ull, 0x9c845f8bbdf9283bull, 0x1ff897ffde05980full,
    0xef2f118b5a0a6d1full, 0x6d367ecf27cb09b7ull, 0x4f463f669e5fea2dull, 0x7527bac7ebe5f17bull,
    0x3d0739f78a5292eaull, 0x6bfb5fb11f8d5d08ull, 0x56033046fc7b6babull, 0xf0cfbc209af4361dull,
    0xa9e391615ee61b08ull, 0x6599855f14a06840ull,
};
}  // namespace dvm::polynomial
